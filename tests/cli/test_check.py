"""`vltool check`: what it says of records, on which stream, and with which exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from shapes import write_shapes
from weights import write_adapter, write_base

import vltool.data
from vltool.cli.complete import rule_ids, target_names

DEMO = Path(vltool.data.__file__).parent / "demo" / "photos.jsonl"


@pytest.fixture
def base(tmp_path, tiny):
    """A whole checkpoint."""
    return shutil.copytree(tiny, tmp_path / "base")


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
    # This host may have no GPU.
    document["findings"] = [item for item in document["findings"] if not item["id"].startswith("host-")]
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
        (["t.jsonl", "--only", "record-jsn"], "did you mean record-json?"),
        (["t.jsonl", "--preview", "."], "which is no preview"),
        (["t.jsonl", "--sarif", "."], "--sarif: . is a folder"),
        (["t.jsonl", "--sarif", "gone/log.sarif"], "--sarif: no such folder: gone"),
        (["stage2_llm_lora", "--recipe", "stage3"], "--recipe says how to read a .jsonl"),
        (["--explain", "record-jsn"], "did you mean record-json?"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_read(vltool, jsonl, arguments, told, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = vltool("check", *arguments)
    assert (code, out) == (2, "")
    assert told in err
    code, out, _ = vltool("check", *arguments, "--json")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    assert json.loads(out)["problems"]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "rule", "told"),
    [
        ("gone.jsonl", "path-absent", "no such file: gone.jsonl"),
        ("stage2_llm_lra", "path-absent", "no recipe stage2_llm_lra"),
        (".", "target-unknown", ". holds no weights"),
        ("a.png", "target-unknown", "a.png is neither a recipe, a fusion config, a .jsonl nor a checkpoint"),
        ("mix.json", "fusion-invalid", "mix.json:1:28: target.train_jsonl: 3 is not text"),
        ("broken.yaml", "recipe-invalid", "broken.yaml:1:9: the bracket"),
        ("bare.yaml", "recipe-length", "no length: global_max_length is missing"),
    ],
)
def test_a_target_that_cannot_be_judged_is_a_finding_and_exits_2(vltool, jsonl, target, rule, told, tmp_path):
    (tmp_path / "mix.json").write_text('{"target": {"train_jsonl": 3}}')
    (tmp_path / "broken.yaml").write_text("target: [")
    (tmp_path / "bare.yaml").write_text("model: {model: /m}\ncustom: {train_jsonl: t.jsonl}\n")
    code, out, _ = vltool("check", target, "--preview", "page")
    assert (code, (tmp_path / "page").exists()) == (2, False)
    assert told in out
    assert f"[{rule}]" in out
    code, document = checked(vltool, target, "--ignore", rule)
    (finding,) = document["findings"]
    assert (code, finding["id"], finding["severity"], finding["file"]) == (2, rule, "error", target)
    assert f"{finding['what']}" in out


def test_the_line_of_what_is_wrong_is_shown_underlined(vltool, tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: stage2_llm_lora\ntuner:\n  lora_rnak: 8\n")
    code, out, _ = vltool("check", "mine.yaml")
    assert code == 2
    assert "mine.yaml:3:3: unknown key tuner.lora_rnak [recipe-invalid]" in out
    assert "^^^^^^^^^  did you mean lora_rank?" in out


def test_a_base_that_is_not_there_is_a_finding_at_its_line(vltool, recipe, tmp_path):
    for base, told in (("gone", "no such checkpoint folder"), (str(tmp_path), "holds no config.json")):
        code, document = checked(vltool, recipe(model={"model": base}))
        (finding,) = (item for item in document["findings"] if item["severity"] != "note")
        assert (code, finding["id"], finding["file"], finding["line"]) == (2, "base-path", "mine.yaml", 1)
        assert f"model.model: {told}" in finding["what"] or told in finding["what"]
    code, document = checked(vltool, recipe())
    assert "base-path" not in {item["id"] for item in document["findings"]}


def test_a_base_without_a_tokenizer_is_a_finding(vltool, recipe, base):
    (base / "tokenizer.json").unlink()
    code, document = checked(vltool, recipe())
    told = [item["id"] for item in document["findings"] if item["severity"] != "note"]
    assert (code, told) == (2, ["base-path"])


def test_the_other_targets_are_judged_beside_those_that_cannot_be(vltool, jsonl):
    code, document = checked(vltool, "gone.jsonl", ".", jsonl)
    assert (code, document["counts"]["error"]) == (2, 5)
    assert [(item["id"], item["what"]) for item in document["findings"] if item["line"] is None] == [
        ("path-absent", "no such file: gone.jsonl"), ("target-unknown", ". holds no weights"),
    ]  # fmt: skip
    assert [file["file"] for file in document["files"]] == [jsonl]


def test_what_is_wrong_with_a_recipe_that_reads_others_is_said_once(vltool, jsonl):
    code, document = checked(vltool, jsonl, str(DEMO), "--recipe", "stage2_llm_lora")
    assert code == 2
    (finding,) = document["findings"]
    assert finding["id"] == "base-path"
    assert "VLTOOL_MODEL" in finding["what"]


def test_a_recipe_whose_records_are_not_there_is_refused_at_its_line(vltool, recipe):
    code, document = checked(vltool, recipe(custom={"val_jsonl": "gone.jsonl"}))
    (finding,) = document["findings"]
    assert (code, finding["id"], finding["file"], finding["line"]) == (2, "path-absent", "mine.yaml", 1)
    assert "custom.val_jsonl: no such file" in finding["what"]


@pytest.fixture
def mixture(tmp_path, jsonl):
    """Writes a fusion config of the photographs and, as its source, the bad records."""

    def write(name="mix.yaml", *, target=(), source=(), **top):
        target = {"name": "photos", "train_jsonl": str(DEMO)} | dict(target)
        source = {"name": "web", "train_jsonl": "t.jsonl", "ratio": 0.5} | dict(source)
        (tmp_path / name).write_text(json.dumps({"targets": [target], "sources": [source]} | top))
        return name

    return write


def test_a_mixture_is_read_without_a_recipe(vltool, mixture, tmp_path):
    small = mixture(target={"val_jsonl": str(DEMO), "sample_limit": 4}, source={"seed": 3})
    code, document = checked(vltool, small)
    assert code == 1
    assert [(Path(file["file"]).name, file["split"], file["records"], file["bad"]) for file in document["files"]] == [
        ("photos.jsonl", "train", 4, 0), ("t.jsonl", "train", 4, 3), ("photos.jsonl", "val", 6, 0),
    ]  # fmt: skip
    assert document["files"][0]["longest"] is None
    found = [item["id"] for item in document["findings"]]
    assert found == ["record-field", "record-json", "record-size", "records-leak"]
    assert {item["id"] for item in checked(vltool, small, "--only", "records-leak")[1]["findings"]} == {"records-leak"}
    assert checked(vltool, mixture("mix.json"), "--preview", "page")[1]["preview"]["records"] == 10


def test_a_mixture_is_read_by_a_recipe_in_place_of_its_own_records(vltool, mixture, recipe):
    own = recipe(data={"on_bad_record": "skip"}, custom={"train_jsonl": "gone.jsonl", "train_sample_limit": 5})
    code, document = checked(vltool, mixture(), "--recipe", own)
    assert (code, document["counts"]["error"]) == (0, 0)
    assert [(Path(file["file"]).name, file["records"]) for file in document["files"]] == [
        ("photos.jsonl", 5), ("t.jsonl", 4),
    ]  # fmt: skip
    assert all(file["max_length"] == 4000 and file["longest"] for file in document["files"])
    longer = mixture("long.yaml", target={"user_prompt": "describe " * 500})
    _, other = checked(vltool, longer, "--recipe", own, "--only", "record-length")
    assert other["files"][0]["longest"]["tokens"] > document["files"][0]["longest"]["tokens"] + 1000


def test_a_jsonl_is_read_by_a_recipe_whose_own_records_are_a_mixture(vltool, mixture, recipe):
    own = recipe(custom={"train_jsonl": None, "fusion_config": mixture(), "val_jsonl": None})
    code, document = checked(vltool, str(DEMO), "--recipe", own, "--preview", "page")
    assert (code, [file["records"] for file in document["files"]]) == (0, [6])


def test_a_recipe_s_mixture_is_read_as_both_say(vltool, mixture, recipe):
    own = recipe(custom={"train_jsonl": None, "fusion_config": mixture(), "val_jsonl": str(DEMO)})
    code, document = checked(vltool, own, "--preview", "page")
    assert code == 1
    assert [(Path(file["file"]).name, file["split"], file["bad"]) for file in document["files"]] == [
        ("photos.jsonl", "train", 0), ("t.jsonl", "train", 3), ("photos.jsonl", "val", 0),
    ]  # fmt: skip
    assert document["preview"]["records"] == 16


def test_what_a_mixture_says_without_effect_is_a_finding_at_its_place(vltool, mixture, recipe):
    odd = mixture(target={"seed": 3}, source={"ratio": 0.01, "train_jsonl": str(DEMO), "name": "more"})
    own = recipe(custom={"train_jsonl": None, "fusion_config": odd, "val_jsonl": None})
    for arguments in ([odd], [own], [odd, "--recipe", own]):
        code, document = checked(vltool, *arguments, "--ignore", "records-duplicate")
        assert [(item["id"], item["severity"], item["file"], item["line"]) for item in document["findings"]] == [
            ("fusion-ratio", "warning", "mix.yaml", 1), ("fusion-note", "note", "mix.yaml", 1),
        ]  # fmt: skip
        assert code == 0
        assert "rounds to none" in document["findings"][0]["what"]
        assert "targets[0].seed has no effect" in document["findings"][1]["what"]
    assert checked(vltool, odd, "--strict")[0] == 1
    assert [item["id"] for item in checked(vltool, odd, "--only", "fusion-note")[1]["findings"]] == ["fusion-note"]


def test_a_source_without_a_record_that_can_be_used_is_a_finding(vltool, mixture, recipe, tmp_path):
    (tmp_path / "t.jsonl").write_text("{\n{\n")
    own = recipe(
        custom={"train_jsonl": None, "fusion_config": mixture(), "val_jsonl": None}, data={"on_bad_record": "skip"}
    )
    code, document = checked(vltool, own, "--only", "fusion-records", "--preview", "page")
    assert code == 1
    (finding,) = document["findings"]
    assert (finding["file"], finding["what"]) == ("mix.yaml", "web has no record that can be used")


@pytest.mark.parametrize("by", ["itself", "its recipe", "another recipe"])
def test_files_that_a_mixture_cannot_be_read_from_are_refused_at_their_places(vltool, mixture, recipe, by, tmp_path):
    (tmp_path / "t.jsonl.gz").write_bytes(b"")
    mixed = mixture(
        target={"val_jsonl": "gone.jsonl"}, source={"train_jsonl": "t.jsonl.gz", "user_prompt": "<|im_end|>"}
    )
    named = {"train_jsonl": None, "fusion_config": mixed, "val_jsonl": None} if by == "its recipe" else {}
    own = recipe(custom=named)
    arguments = {"itself": [mixed], "its recipe": [own], "another recipe": [mixed, "--recipe", own]}[by]
    code, document = checked(vltool, *arguments)
    assert code == 2
    problems = document["findings"]
    assert {problem["id"] for problem in problems} <= {"path-absent", "fusion-invalid"}
    assert {problem["file"] for problem in problems} == {"mix.yaml"}
    told = " ".join(problem["what"] for problem in problems)
    assert "sources[0].user_prompt contains <|im_end|>" in told
    if by == "itself":
        assert "targets[0].val_jsonl: no such file" in told
        assert "t.jsonl.gz is compressed" in told


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


def test_what_trains_is_shown_tower_by_tower(vltool, recipe):
    name = recipe(custom={"train_jsonl": str(DEMO), "val_jsonl": None})
    code, out, _ = vltool("check", name)
    assert code == 0
    for told in ("trainable parameters", "adapter", "vision", "aligner", "deepstack", "language", "frozen"):
        assert told in out
    code, document = checked(vltool, name, "--deep")
    (counted,) = document["trainable"]
    assert (code, counted["recipe"], document["findings"]) == (0, "mine", [])
    towers = {row["tower"]: row["trainable"] for row in counted["towers"]}
    assert towers["vision"] == 0
    assert min(towers["language"], towers["aligner"], towers["deepstack"]) > 0
    assert counted["trainable"] == sum(towers.values())


def test_a_recipe_s_memory_is_planned(vltool, recipe, base):
    write_shapes(base)
    name = recipe(custom={"train_jsonl": str(DEMO)})
    code, out, _ = vltool("check", name)
    assert code == 0
    for told in ("memory of each GPU", "frozen weights", "needed on each GPU", "MFU", "hours an epoch of 6 samples"):
        assert told in out
    code, document = checked(vltool, name)
    (memory,) = document["memory"]
    assert (code, memory["fits"], memory["knobs"]) == (0, True, [])
    assert memory["plan"]["needed"] == memory["plan"]["rows"][-1]["bytes"]


def test_a_step_that_does_not_fit_is_a_warning_with_what_to_change(vltool, recipe, base):
    write_shapes(base)
    name = recipe(custom={"train_jsonl": str(DEMO)}, training={"gradient_checkpointing": False})
    code, document = checked(vltool, name, "--gpu-gib", "16")
    (warning,) = [item for item in document["findings"] if item["id"] == "memory-fit"]
    assert (code, warning["severity"]) == (0, "warning")
    assert "training.gradient_checkpointing: true" in warning["remedy"]
    assert {knob["key"] for knob in document["memory"][0]["knobs"]} >= {"training.gradient_checkpointing"}
    assert vltool("check", name, "--gpu-gib", "16", "--strict")[0] == 1


@pytest.fixture
def checkpoint(tmp_path):
    return str(write_adapter(tmp_path / "run" / "checkpoint-7", base=write_base(tmp_path / "small")))


def test_a_checkpoint_is_judged_as_inspect_ckpt_does(vltool, checkpoint, jsonl, tmp_path):
    code, out, _ = vltool("check", checkpoint)
    assert code == 0
    assert "adapter, 6 tensors in aligner, language, rank 2, 0.0 MB, step 7" in out
    path = tmp_path / "run" / "checkpoint-7" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    code, document = checked(vltool, checkpoint, str(tmp_path / "small"), jsonl)
    assert (code, [one["kind"] for one in document["checkpoints"]]) == (1, ["broken", "full"])
    assert document["checkpoints"][1]["towers"]["aligner"] == 42
    found = [item for item in document["findings"] if item["id"].startswith("ckpt-")]
    _, out, _ = vltool("inspect-ckpt", checkpoint, "--json")
    assert found == json.loads(out)["findings"]
    assert {item["file"] for item in found} == {checkpoint}


def test_a_rule_is_explained(vltool):
    code, out, _ = vltool("check", "--explain", "record-size")
    assert code == 0
    for told in ("record-size", "Why it matters", "EXIF", "What to do", "on_bad_record"):
        assert told in out
    code, out, _ = vltool("check", "--explain", "record-size", "--json")
    assert json.loads(out)["rule"]["docs"] == "docs/findings/record-size.md"


def test_sarif_holds_what_json_holds(vltool, jsonl, recipe, tmp_path):
    (tmp_path / "broken.yaml").write_text("target: [")
    code, document = checked(vltool, recipe(), "broken.yaml", "--sarif", "log.sarif")
    assert code == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".log")] == []
    (run,) = json.loads((tmp_path / "log.sarif").read_text())["runs"]
    results = [result for result in run["results"] if not result["ruleId"].startswith("host-")]
    told = [(result["ruleId"], result["locations"][0]["physicalLocation"]["region"]["startLine"]) for result in results]
    assert told == [(item["id"], item["line"] or 1) for item in document["findings"]]
    places = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results}
    assert places == {"broken.yaml", "t.jsonl"}
    assert run["automationDetails"]["id"] == "vltool check/"


def test_a_step_that_does_not_fit_is_told_at_the_batch_s_line(vltool, recipe, base, tmp_path):
    write_shapes(base)
    batch = {"per_device_train_batch_size": 1, "gradient_checkpointing": False}
    name = recipe(custom={"train_jsonl": str(DEMO)}, training=batch)
    code, document = checked(vltool, name, "--gpu-gib", "16", "--only", "memory-fit")
    (warning,) = document["findings"]
    assert (code, warning["file"], warning["line"]) == (0, name, 1)
    assert warning["column"] > 1


def test_a_wrong_option_is_a_document_too(vltool, jsonl):
    for arguments, told in ((["--jsno"], "--jsno"), (["--samples", "0"], "--samples")):
        code, out, err = vltool("check", jsonl, *arguments, "--json")
        document = json.loads(out)
        assert (code, document["exit_code"]) == (2, 2)
        assert told in document["problems"][0]["what"]
        assert told in err
        assert vltool("check", jsonl, *arguments)[1] == ""


def test_checkpoint_folders_and_rules_are_completed(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert target_names("sm") == ["smoke", "small"]
    assert target_names("run/") == ["run/checkpoint-7"]
    assert rule_ids("record-j") == ["record-json"]


def test_sound_targets_of_every_kind_have_no_finding(vltool, recipe, mixture, checkpoint, tmp_path):
    sound = mixture(source={"train_jsonl": str(DEMO), "ratio": 0.5})
    code, document = checked(
        vltool, recipe(custom={"train_jsonl": str(DEMO), "val_jsonl": None}), sound, checkpoint,
        str(tmp_path / "small"), str(DEMO), "--ignore", "records-duplicate",
    )  # fmt: skip
    assert (code, document["findings"]) == (0, [])
    assert len(document["checkpoints"]) == 2
