"""`vltool render-config`: what it prints, on which stream, and how it says no."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from planning import write_config
from ruamel.yaml import YAML

from vltool.recipe.json_schema import json_schema
from vltool.recipe.resolve import shipped_recipes

MINE = """extends: stage3_gkd_forward
training:
  learning_rate: 2.0e-5
rlhf:
  beta: 0.2
"""


@pytest.fixture
def mine(tmp_path, vltool, monkeypatch):
    """A recipe that resolves, in the working directory."""
    monkeypatch.setenv("VLTOOL_MODEL", str(write_config(tmp_path / "base")))
    monkeypatch.setenv("VLTOOL_TRAIN_JSONL", str(tmp_path / "train.jsonl"))
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "mine.yaml").write_text(MINE)
    return "mine.yaml"


def read(text):
    return YAML(typ="safe", pure=True).load(io.StringIO(text))


def test_every_line_says_where_it_comes_from(vltool, mine):
    code, out, err = vltool("render-config", mine)
    assert (code, err) == (0, "")
    lines = dict(line.split("  # ") for line in out.splitlines() if "  # " in line)
    origins = {line.strip().split(":")[0]: origin for line, origin in lines.items()}
    assert origins["learning_rate"] == "mine.yaml:3:18"
    assert origins["aligner_lr"].startswith("recipes/stage3.yaml:")
    assert origins["lora_rank"].startswith("recipes/base.yaml:")
    unsaid = [line for line in out.splitlines() if "  # " not in line and not line.endswith((":", "\\"))]
    assert not unsaid


def test_without_provenance_no_comment_is_left(vltool, mine):
    _, out, _ = vltool("render-config", mine, "--no-provenance")
    assert "#" not in out
    assert read(out)["rlhf"]["beta"] == 0.2


def test_what_is_printed_prints_itself(vltool, mine, tmp_path):
    _, out, _ = vltool("render-config", mine, "--no-provenance")
    (tmp_path / "again.yaml").write_text(out)
    assert vltool("render-config", "again.yaml", "--no-provenance") == (0, out, "")


def test_notes_go_to_stderr(vltool, mine, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE + "tuner: {train_type: lora}\n")
    code, out, err = vltool("render-config", mine)
    assert code == 0
    assert "tuner_type: lora" in out
    assert "train_type" not in out
    assert "mine.yaml:6:9: tuner.train_type is now called tuner_type" in err


def test_json_holds_values_origins_and_notes(vltool, mine, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE + "data: {dataset: [dummy]}\n")
    code, out, _ = vltool("render-config", mine, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema_version"] == 1
    assert document["recipe"] == "mine"
    assert document["files"][-1] == "mine.yaml"
    assert document["values"]["training"]["learning_rate"] == 2e-5
    assert document["origins"]["training.learning_rate"] == "mine.yaml:3:18"
    assert document["notes"] == [
        {
            "what": "data.dataset can go: vltool puts ms-swift's placeholder there", "do": "",
            "file": "mine.yaml", "line": 6, "column": 8,
        }
    ]  # fmt: skip


def test_json_of_an_invalid_recipe_is_its_problems(vltool, mine, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE + "tuner: {lora_rnak: 8, lora_alpha: '4'}\n")
    code, out, err = vltool("render-config", mine, "--json")
    document = json.loads(out)
    assert code == document["exit_code"] == 2
    assert [(problem["line"], problem["column"]) for problem in document["problems"]] == [(6, 9), (6, 35)]
    assert document["problems"][0]["what"] == "unknown key tuner.lora_rnak"
    assert document["problems"][0]["do"] == "did you mean lora_rank?"
    assert "2 problems" in err


def test_args_are_what_the_plan_hands_to_ms_swift(vltool, mine):
    from vltool.recipe.validate import load_recipe
    from vltool.run.arguments import ALWAYS
    from vltool.run.plan import make_plan

    code, out, _ = vltool("render-config", mine, "--args", "--json")
    assert code == 0
    document = json.loads(out)
    plan = make_plan(load_recipe(mine), cwd=Path.cwd())
    own = {"output_dir"}  # holds the time
    assert {key: value for key, value in document["arguments"].items() if key not in own} == {
        key: value for key, value in (plan.arguments | ALWAYS).items() if key not in own
    }
    _, text, _ = vltool("render-config", mine, "--args")
    assert read(text).keys() == document["arguments"].keys()
    lines = {line.split(":")[0]: line for line in text.splitlines()}
    assert lines["learning_rate"].endswith("  # mine.yaml:3:18")
    assert lines["dataset"].endswith("  # vltool")


def test_args_of_a_recipe_that_cannot_run_are_refused_as_train_refuses_it(vltool, mine, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE + "training: {packing: true}\n".replace("training", "custom: {}\n#"))
    (tmp_path / "packed.yaml").write_text("extends: [mine.yaml, packing]\n")
    code, out, err = vltool("render-config", "packed.yaml", "--args")
    assert (code, out) == (2, "")
    assert "recipes/packing.yaml" in err
    assert "cannot do packing yet" in err


def test_a_difference_names_both_origins(vltool, mine):
    code, out, err = vltool("render-config", mine, "--diff", "stage3_gkd_forward")
    assert code == 0
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0] == "training.learning_rate"
    assert lines[1].split() == ["mine.yaml", "2.0e-05", "#", "mine.yaml:3:18"]
    assert lines[2].split()[:3] == ["stage3_gkd_forward", "5.0e-05", "#"]
    assert lines[3] == "rlhf.beta"
    assert len(lines) == 6
    assert err.strip() == "2 differences"


def test_what_equals_the_default_is_no_difference(vltool, mine, tmp_path):
    (tmp_path / "same.yaml").write_text(
        "extends: mine.yaml\ncustom: {json_format: standard}\ntuner: {use_dora: false}\n"
    )
    code, out, err = vltool("render-config", mine, "--diff", "same.yaml")
    assert (code, out, err.strip()) == (0, "", "0 differences")


def test_differences_as_json(vltool, mine):
    _, out, _ = vltool("render-config", "stage3_gkd_forward", "--diff", mine, "--json")
    document = json.loads(out)
    assert document["right"] == "mine.yaml"
    assert document["differences"][1] == {
        "key": "rlhf.beta",
        "left": {"value": 0.1, "origin": document["differences"][1]["left"]["origin"]},
        "right": {"value": 0.2, "origin": "mine.yaml:5:9"},
    }


def test_the_schema_is_printed_alone(vltool):
    code, out, err = vltool("render-config", "--schema")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(json.loads(out))


def test_every_shipped_recipe_is_listed_with_its_purpose(vltool):
    code, out, _ = vltool("render-config", "--list")
    assert code == 0
    assert all(f" {name} " in out for name in shipped_recipes())
    _, out, _ = vltool("render-config", "--list", "--json")
    rows = {row["name"]: row for row in json.loads(out)["recipes"]}
    assert rows.keys() == shipped_recipes().keys()
    assert rows["zero3"]["kind"] == "overlay"
    assert rows["stage3"]["kind"] == "recipe"
    assert all(row["purpose"] and Path(row["file"]).is_file() for row in rows.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a recipe"),
        (["base", "--schema"], "--schema takes no recipe"),
        (["base", "--list"], "--list takes no recipe"),
        (["--schema", "--list"], "--schema and --list"),
        (["base", "--args", "--diff", "stage3"], "--args and --diff"),
        (["stage4"], "did you mean stage3?"),
        (["base", "--diff", "bse"], "did you mean base?"),
        (["base", "--no-such-option"], "No such option"),
    ],
)
def test_questions_that_make_no_sense(arguments, words, vltool, mine):
    code, out, err = vltool("render-config", *arguments)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())


def test_a_base_config_lies_under_everything(vltool, mine, tmp_path):
    (tmp_path / "site.yaml").write_text("training: {learning_rate: 1.0, run_name: site}\n")
    _, out, _ = vltool("render-config", mine, "--base-config", "site.yaml", "--no-provenance")
    training = read(out)["training"]
    assert training["learning_rate"] == 2e-5
    assert training["run_name"] == "site"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1", "FORCE_COLOR": ""}, {}])
def test_nothing_is_coloured_in_a_pipe(environment, vltool, mine, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for arguments in ([mine], [mine, "--diff", "base"], ["--list"], ["nowhere"]):
        _, out, err = vltool("render-config", *arguments)
        assert "\x1b" not in out + err


@pytest.mark.parametrize("arguments", [["--list"], ["mine.yaml", "--diff", "base"], ["-h"]])
def test_eighty_columns_are_enough(arguments, vltool, mine, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = vltool("render-config", *arguments)
    assert max(len(line) for line in out.splitlines()) <= 80


def test_a_reader_that_stops_early_is_no_fault():
    """`vltool render-config --schema | head -1`."""
    command = f"{sys.executable} -m vltool render-config --schema | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_it_runs_as_a_module(tmp_path):
    done = subprocess.run([sys.executable, "-m", "vltool", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("vltool ")


def test_a_difference_compares_with_vltools_own_defaults(vltool, mine):
    _, out, _ = vltool("render-config", "stage3_gkd", "--diff", "stage3")
    lines = [line.split() for line in out.splitlines()]
    at = lines.index(["rlhf.rlhf_type"])
    assert lines[at + 2] == ["stage3", "null", "#", "default"]


def test_a_length_written_elsewhere_keeps_its_place(vltool, mine, tmp_path):
    (tmp_path / "l.yaml").write_text("extends: base\nglobal_max_length: null\ntemplate: {max_length: 8192}\n")
    _, out, _ = vltool("render-config", "l.yaml", "--diff", "base")
    assert out.splitlines()[1].split() == ["l.yaml", "8192", "#", "l.yaml:3:24"]
    _, out, _ = vltool("render-config", "l.yaml", "--json")
    assert json.loads(out)["origins"]["global_max_length"] == "l.yaml:3:24"


def test_a_mapping_and_a_name_are_one_difference(vltool, mine, tmp_path):
    (tmp_path / "named.yaml").write_text("extends: [base, zero2]\n")
    (tmp_path / "own.yaml").write_text(
        "extends: base\ndeepspeed: {enabled: true, config: {zero_optimization: {stage: 2}}}\n"
    )
    _, out, err = vltool("render-config", "own.yaml", "--diff", "named.yaml")
    assert [line.split()[0] for line in out.splitlines()] == ["deepspeed.config", "own.yaml", "named.yaml"]
    assert "zero_optimization.stage: 2" in out
    assert err.strip() == "1 difference"


def test_args_name_the_lines_of_vltools_own_keys_too(vltool, mine, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE + "tuner: {freeze_vit: true, last_vit_blocks: null}\n")
    _, out, _ = vltool("render-config", mine, "--args", "--json")
    origins = json.loads(out)["origins"]
    assert origins["freeze_vit"] == "mine.yaml:6:21"
    assert origins["model"].startswith("recipes/base.yaml:")
    # There is no validation data, so that vltool said no.
    assert "eval_strategy" not in origins


def test_args_can_be_looked_at_beside_a_run_and_without_its_records(vltool, mine, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "left.txt").touch()
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "mine.yaml").write_text(MINE + "custom: {train_jsonl: train.jsonl}\n")
    code, _, err = vltool("render-config", mine, "--args")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("name", ["zero2", "full", "smoke"])
def test_an_overlay_alone_is_told_to_be_one(name, vltool):
    code, out, err = vltool("render-config", name)
    assert (code, out) == (2, "")
    assert f"{name} is an overlay, and no recipe by itself" in err
    assert f"extends: [stage3, {name}]" in err


def run(arguments, stdout, **env):
    return subprocess.run(
        [sys.executable, "-m", "vltool", *arguments],
        env=os.environ | env, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip


def test_results_are_utf_8_whatever_the_terminal_is(mine, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE + "custom: {user_prompt: 何が見えますか}\n", encoding="utf-8")
    done = run(["render-config", mine, "--diff", "base"], subprocess.PIPE, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, "14 differences\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_no_traceback():
    with open("/dev/full", "w") as full:
        done = run(["render-config", "--schema"], full)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
