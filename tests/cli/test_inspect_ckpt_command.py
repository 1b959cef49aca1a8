"""`vltool inspect-ckpt`: what it says, on which stream, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from weights import adapter_tensors, write_adapter, write_base, write_sharded

from vltool.cli.complete import checkpoint_folders

HEAVY = {"torch", "transformers", "peft", "swift", "safetensors"}


@pytest.fixture
def folder(tmp_path):
    return write_adapter(tmp_path / "checkpoint-7", base=write_base(tmp_path / "base"))


def test_a_sound_adapter(vltool, folder):
    code, out, err = vltool("inspect-ckpt", str(folder))
    assert (code, err) == (0, "")
    for words in ("adapter", "LORA, by peft 0.20.0", "2 (2 modules)", "step 7", "aligner", "language", "no findings"):
        assert words in out
    assert "vision" not in out


def test_one_document_on_stdout(vltool, folder):
    code, out, _ = vltool("inspect-ckpt", str(folder), "--json", "--values", "--diff", str(folder))
    document = json.loads(out)
    assert (code, document["exit_code"], document["schema_version"]) == (0, 0, 1)
    assert document["checkpoint"]["towers"]["language"]["layers"] == {"0": 40, "1": 40}
    assert document["values"]["language"]["elements"] == 80
    assert document["difference"] == {"fields": {}, "only_a": [], "only_b": [], "changed": {}, "values": []}
    assert document["findings"] == []


def test_content_that_is_wrong_exits_1_and_rules_can_be_chosen(vltool, folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = vltool("inspect-ckpt", str(folder))
    assert code == 1
    assert "ckpt-header" in out
    assert "copy it again" in out
    code, out, _ = vltool("inspect-ckpt", str(folder), "--json", "--ignore", "ckpt-header")
    assert "ckpt-header" not in {finding["id"] for finding in json.loads(out)["findings"]}
    assert vltool("inspect-ckpt", str(folder), "--only", "ckpt-tied")[0] == 0
    code, _, err = vltool("inspect-ckpt", str(folder), "--only", "ckpt-heder")
    assert code == 2
    assert "did you mean ckpt-header?" in err


def test_warnings_fail_when_they_are_to(vltool, folder):
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert vltool("inspect-ckpt", str(folder))[0] == 0
    assert vltool("inspect-ckpt", str(folder), "--strict")[0] == 1


def test_assertions_and_their_values(vltool, folder, tmp_path):
    (tmp_path / "want.yaml").write_text("kind: adapter\nfinite: true\nrank: 2\n")
    assert vltool("inspect-ckpt", str(folder), "--expect", "want.yaml")[0] == 0
    (tmp_path / "want.yaml").write_text("rank: 4\n")
    code, out, _ = vltool("inspect-ckpt", str(folder), "--expect", "want.yaml")
    assert code == 1
    assert "its ranks are 2, not 4" in out
    (tmp_path / "want.yaml").write_text("rnk: 4\n")
    code, _, err = vltool("inspect-ckpt", str(folder), "--expect", "want.yaml")
    assert code == 2
    assert "want.yaml:1:1" in err
    assert "did you mean rank?" in err


def test_findings_are_written_as_sarif(vltool, folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert vltool("inspect-ckpt", str(folder), "--sarif", "log.sarif")[0] == 0
    (run,) = json.loads((tmp_path / "log.sarif").read_text())["runs"]
    (result,) = run["results"]
    assert (result["ruleId"], result["level"]) == ("ckpt-pickle", "warning")
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "checkpoint-7"
    assert run["automationDetails"]["id"] == "vltool inspect-ckpt/"
    code, out, err = vltool("inspect-ckpt", str(folder), "--sarif", "gone/log.sarif")
    assert (code, out, "no such folder: gone" in err) == (2, "", True)


def test_a_difference_exits_1(vltool, folder, tmp_path):
    tensors = adapter_tensors()
    tensors.pop("base_model.model.model.visual.merger.linear_fc1.bias")
    other = write_adapter(tmp_path / "other", base=tmp_path / "base", tensors=tensors, lora_alpha=8)
    code, out, _ = vltool("inspect-ckpt", str(folder), "--diff", str(other))
    assert code == 1
    assert "4.0 → 8.0" in out
    assert "model.visual.merger.linear_fc1.bias" in out


def test_a_base_elsewhere(vltool, folder, tmp_path):
    moved = write_adapter(tmp_path / "moved", base="Qwen/Nowhere")
    assert "is not on this host" in vltool("inspect-ckpt", str(moved))[1]
    code, out, _ = vltool("inspect-ckpt", str(moved), "--base", str(tmp_path / "base"))
    assert (code, "no findings" in out) == (0, True)
    assert vltool("inspect-ckpt", str(moved), "--base", "gone")[0] == 2


def test_wrong_usage_exits_2(vltool, folder):
    for arguments in ([], ["gone"], [str(folder / "optimizer.pt")], [str(folder.parent)]):
        code, out, err = vltool("inspect-ckpt", *arguments)
        assert (code, out) == (2, "")
        assert err
    code, out, _ = vltool("inspect-ckpt", "gone", "--json")
    assert (code, json.loads(out)["problems"][0]["what"]) == (2, "no such checkpoint folder: gone")


def test_names_in_brackets_are_shown_as_they_are(vltool, tmp_path):
    folder = write_adapter(tmp_path / "[red]x", base="[bold]/b", target_modules=["[/]"])
    code, out, _ = vltool("inspect-ckpt", str(folder))
    assert code in (0, 1)
    assert "[bold]/b" in out


def test_headers_alone_load_neither_torch_nor_numpy(tmp_path):
    write_sharded(tmp_path)
    code = (
        "import sys, contextlib, io\n"
        f"sys.argv = ['vltool', 'inspect-ckpt', {str(tmp_path)!r}, '--sarif', {str(tmp_path / 'log.sarif')!r}]\n"
        "from vltool.cli.app import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()\n"
        "print(' '.join(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "msgspec" in loaded
    assert not loaded & (HEAVY | {"numpy", "PIL", "tokenizers"})
    assert (tmp_path / "log.sarif").is_file()


def test_checkpoint_folders_are_completed(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    assert checkpoint_folders("") == ["base", "checkpoint-7"]
    assert checkpoint_folders("ch") == ["checkpoint-7"]
    assert checkpoint_folders(f"{tmp_path}/b") == [f"{tmp_path}/base"]
    assert checkpoint_folders("gone/x") == []
