"""The second count of what trains, on torch's meta device, against the table from headers."""

from __future__ import annotations

import resource

import pytest

pytest.importorskip("torch")

from planning import House
from shapes import TEXT_4B, VISION_4B, write_shapes

from vltool.audit.deep_rules import differences, judge_deep
from vltool.audit.trainable import trainable
from vltool.run import launch

TEXT_8B = TEXT_4B | {"hidden_size": 4096, "intermediate_size": 12288}
VISION_8B = VISION_4B | {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096,
    "deepstack_visual_indexes": [8, 16, 24],
}  # fmt: skip
SMALL = {"adalora_init_r": 4, "adalora_target_r": 2}
MODES = {
    "LoRA": (["base"], {}),
    "LoRA everywhere": (["stage3"], {}),
    "DoRA": (["stage2_llm_lora", "dora"], {}),
    "PiSSA": (["base"], {"init_weights": "pissa"}),
    "PiSSA, drawn": (["base"], {"init_weights": "pissa_niter_4", "lora_rank": 4}),
    "AdaLoRA": (["base", "adalora"], SMALL),
    "BOFT": (["base", "boft"], {}),
    "FourierFT": (["base", "fourierft"], {"fourier_n_frequency": 16}),
    "modules_to_save": (["stage1_aligner_full"], {}),
    "full": (["stage3", "full"], {"last_vit_blocks": 2}),
    "DeepSpeed": (["base", "zero3"], {}),
}

TOWER = 3
"""The language tower's place among the rows."""


@pytest.fixture
def small(tmp_path, tiny):
    house = House(tmp_path)
    house.env["VLTOOL_MODEL"] = str(tiny)
    return house


def judged(house, source, **sections):
    recipe = house.recipe(source, **sections)
    return judge_deep(house.plan_of(recipe), recipe), recipe


@pytest.mark.parametrize("name", MODES)
def test_both_counts_agree(small, name):
    source, tuner = MODES[name]
    assert judged(small, source, tuner=tuner)[0] == []


def test_a_quantized_base_and_flash_attention_need_no_package(small):
    quantization, model = {"quant_method": "bnb", "quant_bits": 4}, {"attn_impl": "flash_attention_2"}
    assert judged(small, "base", quantization=quantization, model=model)[0] == []


def test_a_difference_is_told(small):
    plan = small.plan("stage2_llm_lora")
    table = trainable(plan)
    rows = launch.count_deep(plan)
    rows[TOWER].trainable += 1
    assert list(differences(table, rows)) == [
        f"language: by the headers {table.rows[TOWER].trainable:,} parameters train, "
        f"in the model {table.rows[TOWER].trainable + 1:,}"
    ]


def test_a_base_whose_headers_are_not_its_configs_differs(tmp_path):
    """Its config.json counts a layer less than its files hold."""
    house = House(tmp_path)
    write_shapes(house.base)
    config = (house.base / "config.json").read_text()
    (house.base / "config.json").write_text(config.replace('"num_hidden_layers": 36', '"num_hidden_layers": 35'))
    found, recipe = judged(house, "base")
    assert {(finding.id, finding.severity) for finding in found} == {("deep-parameters", "error")}
    assert {finding.where for finding in found} == {recipe.where("tuner.tuner_type")}
    assert any(finding.what.startswith("language: by the headers 66,060,288 parameters train") for finding in found)


def test_a_tuner_that_cannot_be_made_is_told(small):
    (told,) = judged(small, "base", tuner={"target_regex": r".*merger.*"})[0]
    assert (told.id, told.severity) == ("deep-parameters", "error")
    assert "the tuner cannot be made" in told.what


def test_permutations_that_fill_the_host_are_not_built(tmp_path):
    house = House(tmp_path)
    write_shapes(house.base)
    (told,) = judged(house, ["base", "boft"])[0]
    assert (told.id, told.severity) == ("deep-parameters", "note")
    assert "GiB of permutations" in told.what


def test_eight_billion_parameters_take_no_memory(tmp_path, small):
    (tmp_path / "large").mkdir()
    house = House(tmp_path / "large")
    write_shapes(house.base, TEXT_8B, VISION_8B)
    judged(small, "base")  # the imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert judged(house, "stage3")[0] == []
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200
