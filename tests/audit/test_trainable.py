"""The table of trainable parameters against what `train` finds in the model that it built, mode by mode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from planning import House
from shapes import write_shapes

from vltool.audit.anatomy import read_anatomy
from vltool.audit.trainable import trainable
from vltool.recipe.validate import load_recipe
from vltool.run.plan import make_plan
from vltool.training import swift_bridge
from vltool.training.chain import carry
from vltool.training.freeze import audit_before
from vltool.training.tiny import make_tiny

EVERYWHERE = {"freeze_llm": False, "freeze_vit": False, "freeze_aligner": False}
SMALL_RANKS = {"adalora_init_r": 4, "adalora_target_r": 2}
MODES = {
    "LoRA": (["base"], {}, "dense"),
    "LoRA, language, experts": (["base"], {}, "moe"),
    "LoRA, all-linear everywhere": (["base"], EVERYWHERE, "dense"),
    "LoRA, vision alone": (["base"], EVERYWHERE | {"freeze_llm": True, "freeze_aligner": True}, "moe"),
    "LoRA, last vision blocks": (["stage3"], {"last_vit_blocks": 1}, "moe"),
    "LoRA by a pattern": (["base"], {"target_regex": r"model\.visual\.blocks\.3\.attn\.qkv"}, "dense"),
    "LoRA by names": (["base"], {"target_modules": ["q_proj", "linear_fc1"]}, "dense"),
    "LoRA on a convolution": (["base"], {"target_modules": ["proj"]}, "dense"),
    "LoRA on the tied head": (["base"], {"target_modules": ["lm_head"]}, "dense"),
    "rsLoRA": (["base"], {"use_rslora": True}, "dense"),
    "DoRA": (["stage2_llm_lora", "dora"], {}, "dense"),
    "DoRA on a convolution": (["base", "dora"], {"target_modules": ["proj"]}, "dense"),
    "PiSSA of a rank that some modules do not have": (["stage2_llm_lora"], {"init_weights": "pissa"}, "dense"),
    "PiSSA, drawn": (["stage3"], {"init_weights": "pissa_niter_4", "lora_rank": 4, "use_rslora": True}, "moe"),
    "AdaLoRA": (["stage1_aligner_lora", "adalora"], SMALL_RANKS, "dense"),
    "AdaLoRA everywhere": (["base", "adalora"], EVERYWHERE | SMALL_RANKS, "moe"),
    "BOFT": (["stage2_llm_lora", "boft"], {}, "moe"),
    "BOFT by the number of blocks": (["base", "boft"], {"boft_block_size": 0, "boft_block_num": 2}, "dense"),
    "FourierFT": (["stage1_aligner_lora", "fourierft"], {"fourier_n_frequency": 16}, "dense"),
    "the aligner through modules_to_save": (["stage1_aligner_full"], {}, "moe"),
    "LoRA + modules_to_save": (["base"], {"modules_to_save": ["model.visual.merger"]}, "dense"),
    "DoRA + modules_to_save": (["base", "dora"], {"modules_to_save": ["model.visual.merger"]}, "dense"),
    "BOFT + modules_to_save": (["base", "boft"], {"modules_to_save": ["model.visual.merger"]}, "dense"),
    "saved by the end of many names": (["base"], {"modules_to_save": ["norm"]}, "dense"),
    "a saved module in a saved one": (["base"], {"modules_to_save": ["model.visual", "visual.merger"]}, "dense"),
    "the tied head in full": (["base"], {"modules_to_save": ["lm_head"]}, "dense"),
    "the tied embedding in full": (["base"], {"modules_to_save": ["embed_tokens"]}, "dense"),
    "experts in full": (["base"], {"modules_to_save": ["mlp.experts", "layers.0.mlp.gate"]}, "moe"),
    "full": (["stage3", "full"], {"last_vit_blocks": None}, "dense"),
    "full, aligner": (["stage1_aligner_lora", "full"], {}, "moe"),
    "full, language": (["base", "full"], {}, "dense"),
    "full, last vision blocks": (["stage3", "full"], {"last_vit_blocks": 2}, "moe"),
}  # fmt: skip
"""Mode -> what it extends and changes, and on which tiny checkpoint."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny):
    return {"dense": Path(tiny), "moe": make_tiny(tmp_path_factory.mktemp("moe"), texts=("a red square",), moe=True)}


@pytest.fixture
def plan_of(bases, tmp_path):
    def plan(extends, tuner, kind, *, run="run", **sections):
        (tmp_path / "t.jsonl").write_text("{}\n")
        document = {
            "extends": extends,
            "model": {"model": str(bases[kind]), "torch_dtype": "float32"},
            "tuner": {"resume_from_checkpoint": None} | tuner,
            "training": {"bf16": False, "output_dir": str(tmp_path / run)},
            "custom": {"train_jsonl": str(tmp_path / "t.jsonl")},
        } | sections
        path = tmp_path / "mine.yaml"
        path.write_text(json.dumps(document))
        return make_plan(load_recipe(str(path), env={}), cwd=tmp_path)

    return plan


def counted(rows):
    return [(row.tower, row.should_train, row.trainable, row.frozen) for row in rows]


@pytest.mark.parametrize("name", MODES)
def test_the_table_is_what_train_reports(name, plan_of):
    plan = plan_of(*MODES[name])
    audit = audit_before(swift_bridge.build(plan).model, plan.tuner)
    assert audit.problems == []
    assert counted(row.row() for row in trainable(plan).rows) == counted(audit.rows)


CHAINS = {
    "the aligner goes on frozen": (["stage1_aligner_lora"], ["stage2_llm_lora"], {"freeze_aligner": True}),
    "both train": (["stage1_aligner_lora"], ["stage2_llm_lora"], {}),
    "a larger rank": (["stage1_aligner_lora"], ["stage2_llm_lora"], {"lora_rank": 64}),
    "full copies go on frozen": (["stage1_aligner_full"], ["base"], {}),
    "full copies go on in full": (["stage1_aligner_full"], ["stage2_llm_lora"], {}),
    "LoRA goes on in full": (["stage1_aligner_lora"], ["stage1_aligner_full"], {}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_carried_stage_is_counted(name, plan_of, tmp_path):
    first, second, tuner = CHAINS[name]
    earlier = swift_bridge.build(plan_of(first, {}, "dense", run="first")).model
    earlier.save_pretrained(tmp_path / "earlier")
    plan = plan_of(second, tuner | {"resume_from_checkpoint": str(tmp_path / "earlier")}, "dense")
    model = swift_bridge.build(plan).model
    carry(model, plan.tuner)
    table, audit = trainable(plan), audit_before(model, plan.tuner)
    assert counted(row.row() for row in table.rows) == counted(audit.rows)
    assert (sum(row.carried for row in table.rows) > 0) == ("frozen" in name)


def test_a_base_in_4_bits_has_as_many_elements(plan_of):
    pytest.importorskip("bitsandbytes")
    four = {"quantization": {"quant_method": "bnb", "quant_bits": 4}}
    plan = plan_of(["base"], {}, "dense", **four)
    audit = audit_before(swift_bridge.build(plan).model, plan.tuner)
    assert counted(row.row() for row in trainable(plan).rows) == counted(audit.rows)


def test_rows_add_up(tmp_path):
    house = House(tmp_path)
    write_shapes(house.base)
    table = trainable(house.plan())
    assert table.total == 66_060_288
    assert table.total + table.frozen == 4_437_815_808 + table.total
    assert table.share == pytest.approx(0.01467, rel=1e-3)
    document = table.to_json()
    assert document["trainable"] == sum(row["trainable"] for row in document["towers"])
    assert {row["tower"]: row["adapter"] for row in document["towers"]}["language"] == table.total


def test_memory_is_planned_from_the_same_count(tmp_path):
    house = House(tmp_path)
    write_shapes(house.base)
    plan = house.plan(tuner={"modules_to_save": ["model.visual.merger"], "use_dora": True})
    anatomy, table = read_anatomy(house.base, plan.tuner, plan.arguments), trainable(plan)
    assert anatomy.adapters == sum(row.adapter for row in table.rows)
    assert anatomy.copied == sum(row.copies for row in table.rows)
