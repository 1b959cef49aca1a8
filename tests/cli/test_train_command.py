"""`vltool train` on bad input: the exit code, one message each with place and remedy, nothing written."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

CONFIG = {
    "model_type": "qwen3_vl",
    "vision_config": {"depth": 24, "deepstack_visual_indexes": [5, 11, 17], "patch_size": 16, "spatial_merge_size": 2},
    "text_config": {"num_hidden_layers": 36, "hidden_size": 2560, "vocab_size": 151936},
    "tie_word_embeddings": True,
}


@pytest.fixture
def written(tmp_path, records):
    """Writes mine.yaml over the base recipe, with a model folder whose config.json is a 4B's."""
    base = tmp_path / "base-model"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(CONFIG))

    def write(text="", *, model=str(base), train_jsonl=str(records)):
        path = tmp_path / "mine.yaml"
        path.write_text(
            f"extends: base\nmodel:\n  model: {model}\ncustom:\n  train_jsonl: {train_jsonl}\n{text}", encoding="utf-8"
        )
        return path.name

    return write


CASES = {
    "unknown key": ("launch:\n  nprocs: 2\n", 2, ["mine.yaml:7:3", "launch.nprocs", "nproc_per_node"]),
    "wrong type": ("rlhf:\n  rlhf_type: gkd\n  beta: '0.1'\n", 2, ["mine.yaml:8:9", "rlhf.beta", "number"]),
    "out of range": ("rlhf:\n  rlhf_type: gkd\n  beta: 1.5\n", 2, ["mine.yaml:8:9", "rlhf.beta"]),
    "missing base": ("", 2, ["mine.yaml:1:10", "no recipe nowhere", "extends: nowhere"]),
    "unset variable": (
        "training:\n  run_name: ${VLTOOL_NO_SUCH}\n",
        2,
        ["mine.yaml:7:13", "VLTOOL_NO_SUCH", "not set"],
    ),
    "no length": ("global_max_length: null\n", 2, ["global_max_length"]),
    "not built: packing": ("training:\n  packing: true\n", 2, ["mine.yaml:7", "cannot do packing yet"]),
    "not built: packed weights in shards": (
        "quantization:\n  quant_method: bnb\n  quant_bits: 4\ndeepspeed:\n  enabled: true\n  config: zero3\n",
        2,
        ["mine.yaml:11", "a 4-bit base under ZeRO-3"],
    ),
    "a batch that so many processes cannot make": (
        "launch:\n  nproc_per_node: 3\n",
        2,
        ["mine.yaml:7", "effective_batch_size: 16 is no multiple of 3", "1 a process x 3 processes"],
    ),
    "nodes that cannot meet": ("launch:\n  nnodes: 2\n", 2, ["mine.yaml:7", "launch.master_addr"]),
    "a DeepSpeed file that is not there": (
        "deepspeed:\n  enabled: true\n  config: ./ds.json\n",
        2,
        ["mine.yaml:8", "ds.json"],
    ),
    "no earlier stage": (
        "tuner:\n  resume_from_checkpoint: ./stage1\n",
        2,
        ["mine.yaml:7", "no such checkpoint folder"],
    ),
    "no earlier stage to merge": (
        "tuner:\n  resume_from_checkpoint: ./stage1\n  merge_previous: ./merged\n",
        2,
        ["mine.yaml:7", "no such checkpoint folder"],
    ),
    "not built: ms-swift's own LoRA": ("tuner:\n  use_swift_lora: true\n", 2, ["mine.yaml:7", "use_swift_lora"]),
    "batch that does not divide": (
        "training:\n  effective_batch_size: 7\n  per_device_train_batch_size: 2\n",
        2,
        ["mine.yaml:7", "no multiple of 2", "6 or 8"],
    ),
    "set by vltool itself": ("training:\n  logging_dir: x\n", 2, ["mine.yaml:7", "vltool sets it itself"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_recipes(name, vltool, written, tmp_path):
    text, code, words = CASES[name]
    recipe = written(text)
    if name == "missing base":
        Path(recipe).write_text("extends: nowhere\n")
    before = sorted(tmp_path.rglob("*"))
    got, out, err = vltool("train", recipe)
    assert got == code, err
    assert out == ""
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert sorted(tmp_path.rglob("*")) == before


def test_all_problems_of_a_recipe_are_told_at_once(vltool, written):
    eight_bits = "quantization:\n  quant_method: bnb\n  quant_bits: 8\n"
    code, _, err = vltool("train", written(f"training:\n  packing: true\n{eight_bits}"))
    assert code == 2
    assert "packing" in err
    assert "quant_bits: 8" in err
    assert "2 problems" in err


def test_a_cycle_is_shown_with_its_lines(vltool, tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    code, _, err = vltool("train", "a.yaml")
    assert code == 2
    assert "a.yaml:1" in err
    assert "b.yaml:1" in err


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": "/no/such/model"}, 2, ["mine.yaml:3:10", "no such checkpoint folder"]),
        ({"train_jsonl": "missing.jsonl"}, 2, ["mine.yaml:5:16", "no such file"]),
    ],
)
def test_absent_paths(change, code, words, vltool, written):
    got, _, err = vltool("train", written(**change))
    assert got == code
    for word in words:
        assert word in err


def test_a_checkpoint_with_code_of_its_own_is_refused(vltool, written, tmp_path):
    config = CONFIG | {"auto_map": {"AutoModel": "evil.Model"}}
    (tmp_path / "base-model" / "config.json").write_text(json.dumps(config))
    code, _, err = vltool("train", written())
    assert code == 2
    assert "auto_map" in err


def test_a_silent_resizer_in_the_environment_is_refused(vltool, written, monkeypatch):
    monkeypatch.setenv("MAX_PIXELS", "4096")
    code, _, err = vltool("train", written())
    assert code == 2
    assert "MAX_PIXELS=4096" in err


def test_a_run_folder_in_use_is_refused(vltool, written, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious").write_text("keep me")
    code, _, err = vltool("train", written("training:\n  output_dir: ./used\n"))
    assert code == 2
    assert "is not empty" in err
    assert "resume_from_checkpoint: auto" in err


def test_without_the_training_stack_the_extra_is_named(vltool, written, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    before = sorted(tmp_path.rglob("*"))
    recipe = written()
    code, _, err = vltool("train", recipe)
    assert code == 3
    assert "pip install 'vltool[train]'" in err
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / recipe])
    assert vltool("smoke")[0] == 3


def test_bad_records_and_missing_images_are_content(vltool, tiny, written, records, tmp_path):
    lines = records.read_text().splitlines()
    lines[1] = lines[1].replace('"width": 96', '"width": 0')
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    code, _, err = vltool("train", written(model=tiny, train_jsonl="bad.jsonl"))
    assert code == 1
    assert "bad.jsonl:2" in err
    assert "bad.jsonl:1" in err, "images do not lie beside this file"
    assert not (tmp_path / "runs").exists()


def test_usage(vltool):
    code, _, err = vltool("train")
    assert code == 2
    assert "name one recipe" in err
    code, _, err = vltool("train", "--no-such-option")
    assert code == 2
    code, out, _ = vltool("--version")
    assert code == 0
    assert out.startswith("vltool 0.")
    code, _, err = vltool("train", "stage3_gdk")
    assert code == 2
    assert "stage3_gkd" in err


def test_config_is_another_spelling_of_the_argument(vltool, written):
    recipe = written("training:\n  packing: true\n")
    assert vltool("train", "--config", recipe) == vltool("train", recipe)
    assert vltool("train", recipe, "--config", recipe)[0] == 2


def start(recipe, tmp_path):
    return subprocess.Popen(
        [sys.executable, "-m", "vltool", "train", str(recipe)], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def descendants(process):
    """The process groups that a process has begun, and those that they have."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, parent, group = stat.read_text().rpartition(") ")[2].split()[:3]
            if int(parent) == process:
                found |= {int(group)} | descendants(int(stat.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_several_processes(number, overlay, tmp_path):
    training = {"effective_batch_size": 2, "per_device_train_batch_size": 1}
    process = start(overlay("stage2_llm_lora", training=training, launch={"nproc_per_node": 2}), tmp_path)
    deadline = time.monotonic() + 60
    while not descendants(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "defect" not in err
    assert out == ""
    assert not descendants(process.pid)


@pytest.mark.parametrize(
    ("number", "code", "processes"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1), (signal.SIGTERM, 143, 2)]
)
def test_a_signal_leaves_a_folder_from_which_the_run_goes_on(number, code, processes, overlay, tmp_path):
    settings = {
        "bf16": False, "logging_steps": 1, "save_steps": 1000, "eval_steps": 1000, "effective_batch_size": processes,
        "per_device_train_batch_size": 1, "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    common = {"data": {"dataloader_num_workers": 2}, "launch": {"nproc_per_node": processes}}
    process = start(overlay("stage2_llm_lora", training=settings | {"max_steps": 500}, **common), tmp_path)
    log = tmp_path / "run" / "logging.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # A terminal's Ctrl-C and a scheduler's SIGTERM reach the loader's workers too; the latter every process.
    for group in {process.pid, *(descendants(process.pid) if number == signal.SIGTERM else ())}:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "resume_from_checkpoint: auto" in err
    (checkpoint,) = [path for path in (tmp_path / "run").glob("checkpoint-*") if path.is_dir()]
    step = int(checkpoint.name.rpartition("-")[2])

    more = settings | {"max_steps": step + 2, "resume_from_checkpoint": "auto"}
    process = start(overlay("stage2_llm_lora", training=more, **common), tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.strip().endswith(f"checkpoint-{step + 2}")
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert [s for s in steps if s <= step] == list(range(1, step + 1))


@pytest.mark.parametrize("recipe", ["stage3_gkd_forward", "stage3_gkd", "stage1_aligner_full"])
def test_a_shipped_recipe_runs_as_it_is(recipe, tiny, records, tmp_path):
    variables = {"VLTOOL_MODEL": str(tiny), "VLTOOL_TRAIN_JSONL": str(records), "VLTOOL_VAL_JSONL": str(records)}
    done = subprocess.run(
        [sys.executable, "-m", "vltool", "train", f"recipes/{recipe}.yaml"], cwd=tmp_path, env=os.environ | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "runs" / recipe).iterdir()
    checkpoint = Path(done.stdout.strip())
    assert checkpoint.parent == run_dir
    assert (checkpoint / "adapter_model.safetensors").is_file()
    rows = [json.loads(line) for line in (run_dir / "logging.jsonl").read_text().splitlines()]
    assert any("train/loss" in row for row in rows)
    assert any("eval/token_acc" in row for row in rows)
    assert any("train/llm_kd_loss" in row for row in rows) == ("gkd" in recipe)
    assert "trust_remote_code" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("name", ["WORLD_SIZE", "NNODES"])
def test_an_environment_of_torchrun_without_its_variables_is_refused(name, vltool, written, monkeypatch):
    monkeypatch.setenv(name, "2")
    code, _, err = vltool("train", written())
    assert code == 2
    assert f"{name}=2" in err


def test_launch_env_cannot_resize_images_silently(vltool, written):
    code, _, err = vltool("train", written("launch:\n  env: {MAX_PIXELS: '1024'}\n"))
    assert code == 2
    assert "MAX_PIXELS=1024" in err


def test_a_schedule_that_takes_no_min_lr_is_named_with_both_lines(vltool, written):
    code, _, err = vltool("train", written("training:\n  lr_scheduler_type: cosine\n"))
    assert code == 2
    assert "mine.yaml:7" in err
    assert "base.yaml" in err
    assert "lr_scheduler_kwargs: {min_lr: null}" in err


def as_torchrun_starts(count):
    """The variables of each of `count` processes on this host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    return [
        os.environ | common | {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(count)
    ]


@pytest.mark.parametrize("differs", ["recipe", "records", None])
def test_processes_that_torchrun_started_agree_or_none_starts(differs, overlay, records, tmp_path):
    training = {"effective_batch_size": 4, "per_device_train_batch_size": 2, "max_steps": 2}
    recipe = overlay("stage2_llm_lora", training=training, custom={"train_jsonl": "${RECORDS}"})
    other = overlay("stage2_llm_lora", "other", training=training | {"learning_rate": 0.5})
    fewer = tmp_path / "fewer.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()[:4]]
    for line in lines:
        line["images"] = [str(records.parent / image) for image in line["images"]]
    fewer.write_text("".join(json.dumps(line) + "\n" for line in lines))

    processes = []
    for rank, env in enumerate(as_torchrun_starts(2)):
        told = other if rank and differs == "recipe" else recipe
        seen = fewer if rank and differs == "records" else records
        command = [sys.executable, "-m", "vltool", "train", str(told)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=env | {"RECORDS": str(seen)}, cwd=tmp_path, **pipes))
    outs, errs = zip(*(process.communicate(timeout=120) for process in processes), strict=True)
    codes = [process.returncode for process in processes]
    if differs is None:
        assert codes == [0, 0], errs
        assert outs[0].strip().endswith("checkpoint-2")
        assert outs[1] == ""
        assert "train loss" not in errs[1]
        return
    assert codes == [2, 2], errs
    assert "process 1 has" in errs[0]
    assert {"recipe": "arguments.learning_rate: 0.5", "records": "its content"}[differs] in errs[0]
    assert errs[1] == ""
    assert not (tmp_path / "run").exists()


def test_records_that_would_all_be_dropped_are_refused(vltool, overlay):
    training = {"effective_batch_size": 16, "per_device_train_batch_size": 16}
    code, _, err = vltool(
        "train", str(overlay("stage2_llm_lora", training=training, data={"dataloader_drop_last": True}))
    )
    assert code == 2
    assert "8 records make no batch of 16" in err
