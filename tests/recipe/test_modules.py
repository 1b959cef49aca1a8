"""Names of modules: transformers' own, taken as peft takes them."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import ModulesToSaveWrapper

from vltool.checkpoint.architecture import tower_of
from vltool.recipe.modules import LISTS, MODULES, close_to, matched, named, part_of
from vltool.run.arguments import last_blocks_regex


def without_indices(names):
    return {re.sub(r"(?<![^.])\d+(?![^.])", "N", name) for name in names if name}


def built(moe):
    """A small Qwen3-VL without weights."""
    from transformers import AutoModelForImageTextToText, Qwen3VLConfig, Qwen3VLMoeConfig

    config = (Qwen3VLMoeConfig if moe else Qwen3VLConfig)(
        vision_config={"depth": 4, "deepstack_visual_indexes": [1, 2, 3]}, text_config={"num_hidden_layers": 2}
    )
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.fixture(scope="module")
def models():
    return [built(moe) for moe in (False, True)]


@pytest.fixture(scope="module")
def names(models):
    return {name for model in models for name, _ in model.named_modules(remove_duplicate=False) if name}


def test_all_modules_of_both_architectures_are_known_and_no_other(models, names):
    assert without_indices(names) == set(MODULES)
    assert len(MODULES) == len(set(MODULES))
    dense, moe = (without_indices(name for name, _ in model.named_modules()) for model in models)
    assert dense - moe, "each has modules of its own"
    assert moe - dense


def test_lists_are_the_lists(models):
    found = {
        name for model in models for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)
    }
    assert found == set(LISTS)


def endings(names):
    """The names and their ends, of modules that every list has."""
    for name in names:
        parts = name.split(".")
        if all(not part.isdigit() or part == "0" for part in parts):
            yield from (".".join(parts[first:]) for first in range(len(parts)))


def test_a_name_means_the_modules_that_peft_targets_by_it(names):
    some = sorted(set(endings(names)))
    assert len(some) > 200
    for name in some:
        config = LoraConfig(target_modules=[name])
        targets = without_indices(module for module in names if check_target_module_exists(config, module))
        assert set(named(name)) == targets, name


@pytest.mark.parametrize("name", ["proj_q", "_proj", "q_pro", "visual.merger.", ".merger", "Merger", "", "blocks.x"])
def test_what_peft_would_not_find_means_nothing(name, names):
    config = LoraConfig(target_modules=[name])
    assert not any(check_target_module_exists(config, module) for module in names)
    assert named(name) == []


@pytest.mark.parametrize(
    "name",
    [
        "lm_head", "embed_tokens", "merger", "model.visual.merger", "merger.linear_fc1", "visual.pos_embed",
        "deepstack_merger_list.0", "model.visual.blocks.0", "blocks.0.attn.qkv", "language_model.norm", "q_norm",
    ],
)  # fmt: skip
def test_a_name_means_the_modules_that_peft_saves_by_it(name):
    # An adapter on the patch embedding alone: what is adapted is not wrapped again.
    config = LoraConfig(target_modules=["patch_embed.proj"], modules_to_save=[name])
    wrapped = {
        module.removeprefix("base_model.model.")
        for module, kind in get_peft_model(built(moe=False), config).named_modules()
        if isinstance(kind, ModulesToSaveWrapper)
    }
    assert wrapped
    assert set(named(name)) == without_indices(wrapped)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("q_porj", "q_proj"),
        ("mergre", "merger"),
        ("model.visual.blocks.3.attn.qvk", "model.visual.blocks.3.attn.qkv"),
        ("model.visual.block.12.mlp.linear_fc2", "model.visual.blocks.12.mlp.linear_fc2"),
        ("layers.7.self_atn.k_proj", "layers.7.self_attn.k_proj"),
        ("deepstack_mergers.2", "deepstack_merger_list.2"),
        ("embed_token", "embed_tokens"),
        ("zzzz", None),
        ("", None),
        ("deepstack_merger_list.x", None),
    ],
)
def test_a_name_that_none_has_is_close_to_one(written, meant):
    assert named(written) == []
    assert close_to(written) == meant
    assert meant is None or named(meant)


@pytest.mark.parametrize(
    ("pattern", "modules"),
    [
        (r"model\.visual\.blocks\.0\.attn\.qkv", {"model.visual.blocks.N.attn.qkv"}),
        (r"model\.visual\.blocks\.35\.attn\.qkv", {"model.visual.blocks.N.attn.qkv"}),
        (r".*layers\.(47|93)\..*gate_proj", {"model.language_model.layers.N.mlp.gate_proj"}),
        (r".*visual\.merger.*", {"model.visual.merger.linear_fc1", "model.visual.merger.linear_fc2"}),
        (r".*lm_head", {"lm_head"}),
        (r"attn\.qkv", set()),
        (r"model\.visual\.blocks\.0", set()),
        (r".*norm", set()),
        (r".*blocks\.N\..*", set()),
        (r"^$", set()),
    ],
)
def test_a_pattern_matches_whole_names_of_linear_modules(pattern, modules):
    assert set(matched(re.compile(pattern))) == modules


def test_patterns_reach_every_linear_module(models):
    linear = without_indices(
        name for model in models for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    )
    assert len(linear) > 15
    assert set(matched(re.compile(".*"))) >= linear


def test_the_pattern_of_the_last_blocks_matches_all_but_the_head():
    every = set(matched(re.compile(last_blocks_regex(False, False, 18, 24))))
    assert {part_of(module) for module in every} == {"vision", "aligner", "deepstack", "language"}
    only = set(matched(re.compile(last_blocks_regex(True, True, 18, 24))))
    assert {part_of(module) for module in only} == {"vision"}


@pytest.mark.parametrize("module", MODULES)
def test_parts_are_the_towers_of_a_checkpoint(module):
    assert part_of(module) == tower_of(module.replace("N", "0"))
    assert part_of(module) == tower_of(f"base_model.model.{module.replace('N', '0')}.weight")
