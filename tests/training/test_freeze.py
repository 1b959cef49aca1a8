"""The audits of what trains, on a prepared model whose parameters are set by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from vltool.recipe.validate import load_recipe
from vltool.run.plan import make_plan
from vltool.training import swift_bridge
from vltool.training.freeze import GradientAudit, audit_before, expected_towers, fingerprints
from vltool.training.ranks import Ranks


@pytest.fixture
def built(overlay, tmp_path):
    def build(extends="stage2_llm_lora", **sections):
        full = sections.get("tuner", {}).get("tuner_type") == "full"
        recipe = overlay([extends, "full"] if full else extends, **sections)
        plan = make_plan(load_recipe(str(recipe)), cwd=tmp_path)
        return swift_bridge.build(plan).model, plan.tuner

    return build


MODES = {
    "language": ({"freeze_aligner": True}, {"language"}),
    "aligner": ({"freeze_llm": True}, {"aligner", "deepstack"}),
    "vision": ({"freeze_llm": True, "freeze_aligner": True, "freeze_vit": False}, {"vision"}),
    "all": ({"freeze_vit": False}, {"language", "aligner", "deepstack", "vision"}),
    "a pattern overrides the flags": (
        {"target_regex": r"model\.visual\.blocks\.3\.attn\.qkv"},
        {"vision"},
    ),
    "suffixes reach every tower that has them": ({"target_modules": ["q_proj", "linear_fc1"]}, None),
    "a saved module overrides the flags": (
        {"freeze_aligner": True, "modules_to_save": ["model.visual.merger"]},
        {"language", "aligner"},
    ),
    "a saved module by the end of its name": ({"freeze_aligner": True, "modules_to_save": ["merger"]}, None),
    "targets by the ends of their names": ({"target_modules": ["self_attn.q_proj"]}, {"language"}),
    "the head in full": ({"freeze_aligner": True, "modules_to_save": ["lm_head"]}, {"language", "head"}),
    "full, aligner": ({"tuner_type": "full", "freeze_llm": True}, {"aligner", "deepstack"}),
    "full, language": ({"tuner_type": "full", "freeze_aligner": True}, {"language"}),
    "full, last vision block": (
        {"tuner_type": "full", "freeze_llm": True, "freeze_aligner": True, "freeze_vit": False, "last_vit_blocks": 1},
        {"vision"},
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_what_ms_swift_prepares_is_what_the_plan_expects(name, built):
    tuner, towers = MODES[name]
    model, plan = built(tuner=tuner)
    audit = audit_before(model, plan)
    assert audit.problems == []
    trains = {row.tower for row in audit.rows if row.trainable}
    assert trains == expected_towers(model, plan)
    if towers is not None:
        assert trains == towers
    total = sum(row.trainable + row.frozen for row in audit.rows)
    assert total == sum(parameter.numel() for parameter in model.parameters())


def parameter(model, part):
    return next((n, p) for n, p in model.named_parameters() if part in n)


def test_audit_before_names_each_mistake(built):
    model, plan = built()
    for part, requires, words in (
        ("visual.blocks.0.norm1", True, "vision: trains, but the recipe freezes it"),
        ("language_model.norm", True, "language: model.language_model.norm.weight trains outside the adapter"),
    ):
        _, p = parameter(model, part)
        p.requires_grad_(requires)
        assert [problem.startswith(words) for problem in audit_before(model, plan).problems] == [True]
        p.requires_grad_(not requires)
    for _, p in model.named_parameters():
        p.requires_grad_(False)
    problems = audit_before(model, plan).problems
    assert problems[0] == "nothing is trainable"
    assert "language: should train, but nothing in it does" in problems


def test_early_vision_blocks_that_train_are_named(built, tmp_path):
    model, plan = built("stage3", tuner={"last_vit_blocks": 2})
    assert audit_before(model, plan).problems == []
    broad, _ = built("stage3", tuner={"last_vit_blocks": 4}, training={"output_dir": str(tmp_path / "broad")})
    (problem,) = audit_before(broad, plan).problems
    assert "only the last vision blocks should" in problem


UP_PROJ = "model.language_model.layers.2.mlp.up_proj"


def set_gradients(model, *, zero=(), missing=(), nan=()):
    """A backward pass that gives every trainable parameter ones, or what is said of it."""
    loss = 0.0
    for name, p in model.named_parameters():
        p.grad = None
        if p.requires_grad and not any(part in name for part in missing):
            weight = torch.zeros_like(p) if any(part in name for part in zero) else torch.ones_like(p)
            if any(part in name for part in nan):
                weight[0] = float("nan")
            loss = loss + (p * weight).sum()
    loss.backward()


def observe(audit, model, rate=1e-3, images=True):
    return audit.observe(saw_images=images, learning_rate=rate)


def test_gradients_of_every_part_and_kind(built):
    model, _ = built()
    audit = GradientAudit(model, Ranks())
    set_gradients(model, zero=("lora_A",))
    assert observe(audit, model) == []
    assert not audit.done, "LoRA's first factors have not shown theirs"
    set_gradients(model)
    assert observe(audit, model) == []
    assert audit.done
    assert audit.per_tower() == {"language": True, "aligner": True, "deepstack": True}


@pytest.mark.parametrize(
    ("gradients", "finding"),
    [
        ({"missing": ("deepstack_merger_list.1",)}, ("deepstack", "merger 1 should train, but no gradient reaches it")),
        ({"zero": ("visual.merger",)}, ("aligner", "should train, but no gradient reaches it")),
        (
            {"nan": ("layers.2.mlp.up_proj.lora_B",)},
            (
                "language",
                f"the gradient of {UP_PROJ}.lora_B.default.weight is not finite",
            ),
        ),
    ],
)
def test_a_part_without_a_gradient_is_named_at_step_one(gradients, finding, built):
    model, _ = built()
    audit = GradientAudit(model, Ranks())
    set_gradients(model, **gradients)
    assert finding in observe(audit, model)
    assert audit.done


def test_a_kind_of_tensor_that_never_gets_one_is_named_at_the_second_update(built):
    model, _ = built()
    audit = GradientAudit(model, Ranks())
    set_gradients(model, zero=("lora_A",))
    assert observe(audit, model, rate=0.0) == []
    assert observe(audit, model) == []
    assert ("language", "gets no gradient in its lora_A") in observe(audit, model)


def test_vision_parts_wait_for_an_image(built):
    model, _ = built()
    audit = GradientAudit(model, Ranks())
    set_gradients(model, missing=("visual",))
    assert observe(audit, model, images=False) == []
    assert observe(audit, model, images=False) == []
    assert not audit.done
    for _ in range(2):
        assert not audit.done
        set_gradients(model)
        assert observe(audit, model) == []
    assert audit.done


def test_text_before_the_first_image_is_no_fault(built):
    model, _ = built()
    audit = GradientAudit(model, Ranks())
    for _ in range(4):
        set_gradients(model, missing=("visual",))
        assert observe(audit, model, images=False) == []
    assert audit.without_input() == ["aligner", "deepstack"]
    assert not audit.wants(saw_images=False), "the language tower has shown its gradients"
    assert audit.wants(saw_images=True)
    set_gradients(model, zero=("visual.merger.linear_fc1.lora_A", "visual.merger.linear_fc2.lora_A"))
    assert observe(audit, model) == []
    assert audit.without_input() == []
    set_gradients(model)
    assert observe(audit, model) == []
    assert audit.done


def test_a_gradient_on_a_frozen_parameter_is_named(built):
    model, _ = built()
    audit = GradientAudit(model, Ranks())
    set_gradients(model)
    _, p = parameter(model, "visual.pos_embed")
    p.grad = torch.ones_like(p)
    assert observe(audit, model)[0] == ("vision", "model.visual.pos_embed.weight is frozen, but has a gradient")


def test_fingerprints_see_one_bit(built):
    model, _ = built()
    before = fingerprints(model)
    name, p = parameter(model, "embed_tokens")
    assert before.keys() == {n for n, q in model.named_parameters() if not q.requires_grad}
    with torch.no_grad():
        p.view(torch.int32)[7, 3] ^= 1
    changed = {n for n, value in fingerprints(model).items() if before[n] != value}
    assert changed == {name}


def test_a_saved_module_that_this_model_does_not_have_is_named(built):
    name = "model.visual.deepstack_merger_list.7"
    model, plan = built(tuner={"modules_to_save": [name]})
    assert audit_before(model, plan).problems == [f"tuner.modules_to_save: the model has no module {name}"]


def test_a_saved_module_brings_what_is_inside_it(built):
    model, plan = built(tuner={"target_regex": "^$", "modules_to_save": ["model.visual"]})
    assert audit_before(model, plan).problems == []
    assert expected_towers(model, plan) == {"vision", "aligner", "deepstack"}
