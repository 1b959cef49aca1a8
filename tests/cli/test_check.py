"""`vltool check`: what it says of records, on which stream, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from planning import write_config
from tokenizers import Tokenizer, models, pre_tokenizers

import vltool.data

DEMO = Path(vltool.data.__file__).parent / "demo" / "photos.jsonl"


@pytest.fixture
def base(tmp_path):
    """A checkpoint folder as far as a check of records looks at it."""
    folder = write_config(tmp_path / "base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def caption(**changes):
    box = {"desc": "cat", "bbox_2d": [1, 2, 30, 20]}
    return {"images": ["a.png"], "width": 64, "height": 32, "objects": [box]} | changes


@pytest.fixture
def jsonl(tmp_path):
    """Three bad records and a good one, in the working directory."""
    Image.new("RGB", (64, 32), "red").save(tmp_path / "a.png")
    lines = [caption(width=60), caption(images=["gone.png"], colour=1), "{", caption()]
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    (tmp_path / "t.jsonl").write_text(text)
    return "t.jsonl"


@pytest.fixture
def recipe(tmp_path, base, jsonl):
    """Writes a recipe over the records."""

    def write(**sections):
        document = {
            "extends": "stage2_llm_lora", "model": {"model": str(base)},
            "custom": {"train_jsonl": "t.jsonl", "val_jsonl": str(DEMO)}, "global_max_length": 4000,
        }  # fmt: skip
        for section, values in sections.items():
            document[section] = (
                document[section] | values if isinstance(values, dict) and section in document else values
            )
        (tmp_path / "mine.yaml").write_text(json.dumps(document))
        return "mine.yaml"

    return write


def checked(vltool, *arguments):
    code, out, _ = vltool("check", *arguments, "--json")
    document = json.loads(out)
    assert (document["schema_version"], document["exit_code"]) == (1, code)
    return code, document


def test_good_records_need_no_recipe(vltool):
    code, out, err = vltool("check", str(DEMO))
    assert code == 0
    assert out.splitlines() == [f"{DEMO}: 6 records, all good", "no findings"]
    assert "reading" in err


def test_every_finding_is_told_with_its_place_and_remedy(vltool, jsonl):
    code, out, _ = vltool("check", jsonl)
    assert code == 1
    for told in (
        "record-size", "t.jsonl:1", "the record declares 60 × 32, its image is 64 × 32", "check on which of the two",
        "record-field", "t.jsonl:2", "unknown field colour: 1", "record-json", "t.jsonl:3",
    ):  # fmt: skip
        assert told in out
    assert out.splitlines()[-2:] == ["t.jsonl: 4 records, 3 with problems", "3 errors"]


def test_json_is_one_document(vltool, jsonl):
    code, document = checked(vltool, jsonl, str(DEMO))
    assert code == 1
    assert document["counts"] == {"error": 3, "warning": 0, "note": 0}
    assert [(item["id"], item["line"]) for item in document["findings"]] == [
        ("record-field", 2), ("record-json", 3), ("record-size", 1),
    ]  # fmt: skip
    assert document["findings"][1]["evidence"] == "{"
    assert [(file["file"], file["records"], file["bad"]) for file in document["files"]] == [
        (jsonl, 4, 3), (str(DEMO), 6, 0),
    ]  # fmt: skip
    assert document["preview"] is None


@pytest.mark.parametrize(
    ("options", "code", "rules"),
    [
        (["--only", "record-json"], 1, ["record-json"]),
        (["--only", "record-json,record-size", "--ignore", "record-json"], 1, ["record-size"]),
        (["--ignore", "record-json", "--ignore", "record-size,record-field"], 0, []),
        (["--only", "record-length"], 0, []),
    ],
)
def test_rules_are_chosen_by_id(vltool, jsonl, options, code, rules):
    got, document = checked(vltool, jsonl, *options)
    assert (got, [item["id"] for item in document["findings"]]) == (code, rules)


def test_a_recipe_s_files_are_read_as_it_says(vltool, recipe):
    code, document = checked(vltool, recipe())
    assert code == 1
    train, val = document["files"]
    assert (train["split"], train["bad"], train["max_length"]) == ("train", 3, 4000)
    assert (val["split"], val["bad"], val["too_long"]) == ("val", 0, 0)
    longest = val["longest"]["tokens"]
    code, document = checked(vltool, recipe(global_max_length=longest - 1), "--only", "record-length")
    (finding,) = document["findings"]
    assert finding["what"] == f"the record is {longest} tokens long, over the limit of {longest - 1}"
    assert (finding["file"], finding["line"]) == (str(DEMO), val["longest"]["line"])


def test_records_that_training_skips_are_warnings(vltool, recipe):
    skipping = recipe(data={"on_bad_record": "skip"})
    code, document = checked(vltool, skipping)
    assert (code, document["counts"]["warning"]) == (0, 3)
    assert checked(vltool, skipping, "--strict")[0] == 1
    assert checked(vltool, skipping, "--strict", "--only", "record-length")[0] == 0


def test_a_recipe_s_notes_are_findings(vltool, recipe):
    _, document = checked(vltool, recipe(data={"dataset": ["dummy"]}))
    notes = [item for item in document["findings"] if item["severity"] == "note"]
    assert [note["id"] for note in notes] == ["recipe-note"]
    assert notes[0]["line"] == 1


def test_a_jsonl_is_read_by_a_recipe_that_names_other_records(vltool, base, jsonl, monkeypatch):
    monkeypatch.setenv("VLTOOL_MODEL", str(base))
    code, document = checked(vltool, str(DEMO), "--recipe", "stage2_llm_lora")
    assert code == 0
    assert document["files"][0]["longest"]["tokens"] > 1000


def test_a_preview_is_written_of_every_file(vltool, recipe, tmp_path):
    code, document = checked(vltool, recipe(), "--preview", "page", "--samples", "3")
    assert code == 1
    page = document["preview"]
    assert page["file"] == "page/index.html"
    assert page["records"] == 6
    assert page["bytes"] == (tmp_path / "page" / "index.html").stat().st_size
    text = (tmp_path / "page" / "index.html").read_text()
    assert text.count("<article") == 6
    assert "record-size" in text
    assert "<mark>" in text
    _, _, err = vltool("check", recipe(), "--preview", "page")
    assert "page/index.html: 10 records, 0." in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name what to check"),
        (["gone.jsonl"], "no such file: gone.jsonl"),
        (["."], ". is a folder, which check cannot judge"),
        (["a.png"], "a.png is neither a recipe nor a .jsonl"),
        (["stage2_llm_lra"], "no recipe stage2_llm_lra"),
        (["t.jsonl", "--only", "record-jsn"], "did you mean record-json?"),
        (["t.jsonl", "--preview", "."], "which is no preview"),
        (["stage2_llm_lora", "--recipe", "stage3"], "--recipe says how to read a .jsonl"),
    ],
)
def test_what_cannot_be_checked_is_refused_before_anything_is_read(vltool, jsonl, arguments, told, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = vltool("check", *arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_all_targets_are_refused_together(vltool, jsonl):
    code, out, _ = vltool("check", "gone.jsonl", ".", jsonl, "--json")
    assert code == 2
    assert [problem["what"] for problem in json.loads(out)["problems"]] == [
        "no such file: gone.jsonl", ". is a folder, which check cannot judge",
    ]  # fmt: skip


def test_a_recipe_whose_records_are_not_there_is_refused_at_its_line(vltool, recipe):
    code, _, err = vltool("check", recipe(custom={"val_jsonl": "gone.jsonl"}))
    assert code == 2
    assert "mine.yaml:1:" in err
    assert "custom.val_jsonl: no such file" in err


def test_many_findings_of_a_rule_are_cut_in_the_table_and_whole_in_json(vltool, tmp_path):
    (tmp_path / "t.jsonl").write_text("{\n" * 14)
    _, out, _ = vltool("check", "t.jsonl")
    assert out.count("record-json") == 11
    assert "and 4 more" in out
    assert "not one of 14 records can be used" in out
    _, document = checked(vltool, "t.jsonl")
    assert document["counts"]["error"] == 15


def test_checking_loads_no_training_stack(tmp_path):
    code = (
        "import sys, contextlib, io\n"
        f"sys.argv = ['vltool', 'check', {str(DEMO)!r}, '--preview', {str(tmp_path / 'page')!r}]\n"
        "from vltool.cli.app import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()\n"
        "print(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "swift", "cv2", "shapely"}
    assert (tmp_path / "page" / "index.html").is_file()
