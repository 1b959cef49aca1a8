"""Findings on checkpoints: each is there where it should be, and not where it should not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from weights import (
    ATTENTION,
    BASE,
    MERGER,
    adapter_tensors,
    write_adapter,
    write_base,
    write_json,
    write_sharded,
    write_weights,
)

from vltool.audit.catalogue import RULES
from vltool.audit.checkpoint_rules import carried, judge
from vltool.checkpoint.completeness import completeness
from vltool.checkpoint.inspection import inspect
from vltool.checkpoint.values import survey

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PEFT = "base_model.model."


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base")


@pytest.fixture
def checkpoint(tmp_path, base):
    """A sound adapter at step 7."""
    return write_adapter(tmp_path / "run" / "checkpoint-7", base=base)


def findings(folder, *, values=False):
    inspection = inspect(folder)
    return judge(inspection, completeness(inspection), survey(inspection.tensors) if values else None)


def ids(folder, *, values=False):
    return {finding.id for finding in findings(folder, values=values)}


def test_nothing_is_found_in_sound_ones(checkpoint, base, tmp_path):
    write_sharded(tmp_path / "sharded")
    assert [findings(folder, values=True) for folder in (checkpoint, base, tmp_path / "sharded")] == [[], [], []]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def half_of(folder):
    tensors = adapter_tensors()
    tensors.pop(f"{PEFT}{ATTENTION}.lora_B.weight")
    write_adapter(folder, base=folder.parent.parent / "base", tensors=tensors)


def more_in(folder, **more):
    write_adapter(folder, base=folder.parent.parent / "base", tensors=adapter_tensors() | more)


def config(folder, **more):
    write_adapter(folder, base=folder.parent.parent / "base", **more)


def with_zeros(folder, *names):
    zeros = {f"{PEFT}{name}": np.zeros(adapter_tensors()[f"{PEFT}{name}"], np.float32) for name in names}
    more_in(folder, **zeros)


def with_nan(folder):
    bad = np.ones((12, 2), np.float32)
    bad[3, 1] = np.nan
    more_in(folder, **{f"{PEFT}{ATTENTION}.lora_B.weight": bad})


def only_pickled(folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")


def only_deepspeed(folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "global_step7").mkdir()
    (folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"x")


def only_fsdp(folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "pytorch_model_fsdp_0").mkdir()
    (folder / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"x")


B0 = f"{ATTENTION}.lora_B.weight"
B1 = B0.replace("layers.0", "layers.1")
BREAK = {
    "a circle of folders": ("ckpt-unreadable", lambda c: (c / "round").symlink_to(c)),
    "a link to itself": ("ckpt-unreadable", lambda c: (c / "x.json").symlink_to(c / "x.json")),
    "a link to nothing": ("ckpt-unreadable", lambda c: (c / "rng_state.pth").symlink_to(c / "gone")),
    "a pipe": ("ckpt-unreadable", lambda c: os.mkfifo(c / "model.safetensors")),
    "half a download": ("ckpt-unfinished", lambda c: (c / "x.safetensors.incomplete").write_bytes(b"x")),
    "an empty file": ("ckpt-unfinished", lambda c: (c / "scheduler.pt").write_bytes(b"")),
    "a pointer for an optimizer": ("ckpt-lfs-pointer", lambda c: (c / "optimizer.pt").write_text(POINTER)),
    "a pointer for weights": ("ckpt-lfs-pointer", lambda c: (c / "adapter_model.safetensors").write_text(POINTER)),
    "a pointer for a configuration": ("ckpt-lfs-pointer", lambda c: (c / "adapter_config.json").write_text(POINTER)),
    "truncated weights": ("ckpt-header", lambda c: cut(c / "adapter_model.safetensors")),
    "no configuration": ("ckpt-adapter-config", lambda c: (c / "adapter_config.json").unlink()),
    "half a configuration": ("ckpt-adapter-config", lambda c: cut(c / "adapter_config.json")),
    "a rank in words": ("ckpt-adapter-config", lambda c: config(c, r="two")),
    "a base's config that is none": ("ckpt-config", lambda c: (c.parent.parent / "base/config.json").write_text("[]")),
    "half a state": ("ckpt-trainer-state", lambda c: cut(c / "trainer_state.json")),
    "another step's state": ("ckpt-trainer-state", lambda c: write_json(c / "trainer_state.json", {"global_step": 6})),
    "no weights": ("ckpt-weights", lambda c: (c / "adapter_model.safetensors").unlink()),
    "only pickles": ("ckpt-pickle", only_pickled),
    "pickles beside": ("ckpt-pickle", lambda c: (c / "pytorch_model.bin").write_bytes(b"x")),
    "DeepSpeed's shards": ("ckpt-sharded-state", only_deepspeed),
    "FSDP's shards": ("ckpt-sharded-state", only_fsdp),
    "a whole model beside": ("ckpt-mixture", lambda c: write_weights(c / "model.safetensors", BASE)),
    "a damaged base": ("ckpt-base", lambda c: cut(c.parent.parent / "base" / "model.safetensors")),
    "no base": ("ckpt-base-absent", lambda c: write_adapter(c, base="Qwen/Nowhere")),
    "a moved base": ("ckpt-base-moved", lambda c: config(c, init_lora_weights="pissa_niter_4")),
    "a factor without its partner": ("ckpt-missing", half_of),
    "a target without a factor": ("ckpt-missing", lambda c: config(c, target_modules=["q_proj", "qkv"])),
    "a module that was not saved": ("ckpt-missing", lambda c: config(c, modules_to_save=["merger", "norm"])),
    "DoRA without magnitudes": ("ckpt-missing", lambda c: config(c, use_dora=True)),
    "a module that nothing names": ("ckpt-unexpected", lambda c: config(c, modules_to_save=None)),
    "a layer that the base lacks": (
        "ckpt-unexpected",
        lambda c: more_in(c, **{f"{PEFT}{name.replace('layers.0', 'layers.9')}": (2, 8) for name in (B0,)}),
    ),
    "another base's shape": ("ckpt-shape", lambda c: more_in(c, **{f"{PEFT}{B0}": (13, 2)})),
    "a copy of another shape": ("ckpt-shape", lambda c: more_in(c, **{f"{PEFT}{MERGER}.weight": (6, 7)})),
    "another rank": ("ckpt-rank", lambda c: config(c, r=4)),
    "another rank for one": ("ckpt-rank", lambda c: config(c, rank_pattern={"layers.1.self_attn.q_proj": 3})),
    "half of a tied pair": (
        "ckpt-tied",
        lambda c: write_adapter(
            c, base=c.parent.parent / "base", modules_to_save=["merger", "embed_tokens"],
            tensors=adapter_tensors() | {f"{PEFT}model.language_model.embed_tokens.weight": (16, 8)},
        ),
    ),
    "no optimizer": ("ckpt-resume", lambda c: (c / "optimizer.pt").unlink()),
    "a NaN": ("ckpt-not-finite", with_nan),
    "one untrained factor": ("ckpt-untrained", lambda c: with_zeros(c, B0)),
    "no trained factor": ("ckpt-untrained", lambda c: with_zeros(c, B0, B1)),
    "a zero weight": ("ckpt-zero", lambda c: with_zeros(c, f"{MERGER}.weight")),
    "4-bit floats": (
        "ckpt-not-decoded",
        lambda c: write_weights(c / "adapter_model.safetensors", {"a.lora_A.weight": np.ones(16, np.uint8)},
                                dtype="F8_E8M0"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAK)
def test_what_is_wrong_is_found_by_its_id(name, checkpoint):
    rule, breaks = BREAK[name]
    breaks(checkpoint)
    found = findings(checkpoint, values=rule in ("ckpt-not-finite", "ckpt-untrained", "ckpt-zero", "ckpt-not-decoded"))
    assert rule in {finding.id for finding in found}
    assert all(finding.id in RULES and finding.what for finding in found)


SHARDS = {
    "a missing shard": ("ckpt-shard-missing", lambda f, shards: shards[1].unlink()),
    "an index of nothing": ("ckpt-index", lambda f, _: write_json(f / "model.safetensors.index.json", {})),
    "an index that leads out": (
        "ckpt-index",
        lambda f, _: write_json(f / "model.safetensors.index.json", {"weight_map": {"a": "../../x.safetensors"}}),
    ),
    "a tensor that is elsewhere": ("ckpt-index", lambda f, shards: write_weights(shards[0], {"lm_head.weight": (1,)})),
    "a file that no index names": ("ckpt-index", lambda f, _: write_weights(f / "model.safetensors", BASE)),
    "a broken shard": ("ckpt-header", lambda f, shards: cut(shards[0])),
}


@pytest.mark.parametrize("name", SHARDS)
def test_what_is_wrong_with_shards_is_found_by_its_id(name, tmp_path):
    rule, breaks = SHARDS[name]
    shards = write_sharded(tmp_path)
    breaks(tmp_path, shards)
    assert rule in ids(tmp_path)


def test_every_rule_on_checkpoints_is_tested():
    tested = {rule for rule, _ in (*BREAK.values(), *SHARDS.values())}
    assert tested == {rule for rule in RULES if rule.startswith("ckpt-")}


def test_a_head_that_is_not_tied_has_to_be_there(tmp_path):
    write_base(tmp_path, tied=False)
    (finding,) = findings(tmp_path)
    assert (finding.id, "lm_head.weight" in finding.what) == ("ckpt-missing", True)


def test_an_untrained_adapter_is_an_error_and_an_untrained_part_a_warning(checkpoint):
    with_zeros(checkpoint, B0)
    assert [finding.severity for finding in findings(checkpoint, values=True)] == ["warning"]
    with_zeros(checkpoint, B0, B1)
    assert [finding.severity for finding in findings(checkpoint, values=True)] == ["error"]


def plan_of(run_dir: Path, **tuner):
    chain = {"checkpoint": "/stage1", "rank": 2, "scaling": 2.0, "adapted": [ATTENTION], "saved": [MERGER]}
    stage = {
        "tuner_type": "lora", "freeze_llm": True, "freeze_vit": True, "freeze_aligner": True, "frozen_vit_blocks": 0,
        "target_modules": ["all-linear"], "target_regex": r".*layers\.1\.self_attn\.q_proj", "modules_to_save": [],
        "carried": chain,
    }  # fmt: skip
    write_json(run_dir / "plan.json", {"tuner": stage | tuner})


def test_frozen_parts_of_an_earlier_stage_are_told_from_the_trained_ones(checkpoint):
    assert carried(inspect(checkpoint)) is None
    plan_of(checkpoint.parent)
    found = carried(inspect(checkpoint))
    assert (found.checkpoint, found.tensors) == ("/stage1", {"language": 2, "aligner": 2})
    plan_of(checkpoint.parent, modules_to_save=["merger"])
    assert carried(inspect(checkpoint)).tensors == {"language": 2}
    plan_of(checkpoint.parent, carried=None)
    assert carried(inspect(checkpoint)) is None
    (checkpoint.parent / "plan.json").write_text("{")
    assert carried(inspect(checkpoint)) is None


def test_weights_without_a_config_are_told(tmp_path):
    folder = write_base(tmp_path / "base")
    assert "ckpt-config" not in ids(folder)
    (folder / "config.json").unlink()
    assert "ckpt-config" in ids(folder)
