"""The judge is judged: a sabotaged run turns its own row red, and no unrelated one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from conftest import Silent

from vltool.audit.run_rules import Judge
from vltool.errors import RunFailed
from vltool.run import launch, telemetry

ROWS = [
    "towers",
    "teacher",
    "gradients",
    "vision",
    "frozen",
    "processes",
    "metrics",
    "learning",
    "checkpoint",
    "reload",
]
TERM = {"enabled": True, "weight": 0.1}
VISUAL = {"visual_kd": {"enabled": True, "vit": TERM, "aligner": TERM, "deepstack": TERM | {"distance": "cosine"}}}


@pytest.fixture
def judged(overlay, train):
    """Runs stage3_gkd_forward with vision terms and the probe, whatever happens, and returns its rows' states."""

    def run(**sections):
        from vltool.audit.preflight import audited
        from vltool.recipe.validate import load_recipe
        from vltool.run.plan import make_plan

        resolved = load_recipe(str(overlay("stage3_gkd_forward", **{"custom": VISUAL} | sections)))
        plan = audited(make_plan(resolved, cwd=Path.cwd(), probe=True), Silent())
        try:
            launch.train(plan, Silent(), resolved=resolved)
        except RunFailed as error:
            print("the run said:", error)
        verdicts = Judge(plan, launch.reload).verdicts()
        assert [verdict.id for verdict in verdicts] == ROWS
        for verdict in verdicts:
            print(f"{verdict.status:<12} {verdict.id:<11} {verdict.evidence}")
        return {verdict.id: verdict.status for verdict in verdicts}

    return run


def states(red: str, not_reached: tuple[str, ...] = ()) -> dict[str, str]:
    """What the rows of a run in one process come to."""
    return (
        dict.fromkeys(ROWS, "pass")
        | {"processes": "not asked"}
        | dict.fromkeys(not_reached, "not reached")
        | {red: "fail"}
    )


AFTER_GRADIENTS = ("vision", "frozen", "metrics", "learning", "checkpoint", "reload")


def test_a_sound_run_is_green(judged):
    assert judged() == dict.fromkeys(ROWS, "pass") | {"processes": "not asked"}


def test_a_loss_detached_from_the_student(judged, monkeypatch):
    from vltool.training import trainer

    real = trainer.distillation_loss
    monkeypatch.setattr(
        trainer, "distillation_loss", lambda hidden, *args, **kwargs: real(hidden.detach(), *args, **kwargs)
    )
    assert judged() == states("gradients", AFTER_GRADIENTS)


def test_one_part_detached_from_the_loss(judged, monkeypatch):
    """The vision features reach the language model without a gradient: aligner and vision train nothing."""
    from vltool.training import swift_bridge

    real = swift_bridge.build

    def cut(plan, *, records):
        prepared = real(plan, records=records)
        merger = prepared.model.get_base_model().model.visual.merger
        merger.register_forward_hook(lambda module, args, output: output.detach())
        return prepared

    monkeypatch.setattr(swift_bridge, "build", cut)
    assert judged() == states("gradients", AFTER_GRADIENTS)


def test_a_frozen_tower_left_unfrozen(judged, monkeypatch):
    from vltool.training import swift_bridge

    real = swift_bridge.build

    def unfrozen(plan, *, records):
        prepared = real(plan, records=records)
        prepared.model.get_base_model().model.visual.patch_embed.requires_grad_(True)
        return prepared

    monkeypatch.setattr(swift_bridge, "build", unfrozen)
    rest = tuple(row for row in ROWS if row not in ("towers", "processes"))
    assert judged() == states("towers", rest)


def test_a_frozen_weight_that_changes(judged, monkeypatch):
    from vltool.training.trainer import CaptionTrainer

    real = CaptionTrainer.note_rates

    def drifting(self):
        real(self)
        with torch.no_grad():
            self.model.get_base_model().model.language_model.norm.weight.add_(1e-6)

    monkeypatch.setattr(CaptionTrainer, "note_rates", drifting)
    # Step 2 ends the run before every kind of tensor has shown its gradient.
    assert judged() == states("frozen", ("gradients", "vision", "metrics", "learning", "checkpoint", "reload"))


def test_a_full_model_saved_in_place_of_the_adapter(judged, monkeypatch):
    from vltool.training.trainer import CaptionTrainer

    def whole(self, output_dir=None, state_dict=None):
        self.model.get_base_model().save_pretrained(output_dir)

    monkeypatch.setattr(CaptionTrainer, "_save_model", whole)
    assert judged() == states("checkpoint", ("reload",))


def test_a_doubled_metric_prefix(judged, monkeypatch):
    real = telemetry.prefixed
    monkeypatch.setattr(telemetry, "prefixed", lambda name: real(f"train/{name}" if name == "token_acc" else name))
    assert judged() == states("metrics")


def test_a_teacher_that_differs(judged, monkeypatch):
    from vltool.training.teacher import AdaptersOff

    real = AdaptersOff.hidden_and_head

    def warped(self, inputs):
        hidden, head = real(self, inputs)
        return hidden * 1.5, head

    monkeypatch.setattr(AdaptersOff, "hidden_and_head", warped)
    assert judged() == states("teacher", ("gradients", *AFTER_GRADIENTS))


def test_a_teacher_of_the_operators_choice_may_differ(judged, tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    green = dict.fromkeys(ROWS, "pass") | {"processes": "not asked", "teacher": "not asked"}
    assert judged(rlhf={"teacher_model": str(other)}) == green


def test_a_nan_in_a_metric(judged, monkeypatch):
    from vltool.training.meter import Meter

    real = Meter.means

    def poisoned(self, ranks, *, parts):
        means = real(self, ranks, parts=parts)
        return means | {"token_acc": float("nan")} if parts else means

    monkeypatch.setattr(Meter, "means", poisoned)
    assert judged() == states("metrics")


def test_a_checkpoint_that_is_not_the_trained_model(judged, monkeypatch):
    from vltool.training.probe import Probe

    real = Probe.save

    def moved(self, run_dir, *, writes):
        for name, parameter in self._trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(1.01)
        real(self, run_dir, writes=writes)

    monkeypatch.setattr(Probe, "save", moved)
    assert judged() == states("reload")


def test_metrics_whose_parts_do_not_add_up(judged, monkeypatch):
    from vltool.training.meter import Meter

    real = Meter.means

    def inflated(self, ranks, *, parts):
        means = real(self, ranks, parts=parts)
        return means | {"loss": means["loss"] * (1 + 1e-6)}

    monkeypatch.setattr(Meter, "means", inflated)
    assert judged() == states("metrics")


def test_vision_features_that_are_detached_from_the_student(judged, monkeypatch):
    from vltool.training import vision_kd

    real = vision_kd.feature_distance
    monkeypatch.setattr(
        vision_kd, "feature_distance", lambda student, *rest, **options: real(student.detach(), *rest, **options)
    )
    assert judged() == states("vision")


def test_smoke_runs_a_recipe_of_the_operators_own(overlay, tmp_path):
    from vltool.audit.smoke import run_smoke

    recipe = overlay("stage2_llm_lora", tuner={"freeze_aligner": True})
    keep = tmp_path / "kept"
    reporter = Silent()
    result = run_smoke(str(recipe), tiny=False, nproc=None, keep=keep, reporter=reporter)
    assert reporter.warnings == []
    by_id = {verdict.id: verdict for verdict in result.verdicts}
    assert result.passed, [verdict for verdict in result.verdicts if verdict.status != "pass"]
    assert by_id["teacher"].status == "not asked"
    assert "language" in by_id["towers"].evidence
    assert (keep / "run" / "logging.jsonl").is_file()
    shutil.rmtree(keep)


def test_smoke_in_two_processes(overlay, tmp_path):
    from vltool.audit.smoke import run_smoke

    answers = tmp_path / "answers"
    written = {"seq_kd": True, "seq_kd_ratio": 0.5, "teacher_completions_cache": str(answers)}
    recipe = str(overlay("stage3_gkd_forward", rlhf=written))
    result = run_smoke(recipe, tiny=True, nproc=2, keep=None, reporter=Silent())
    by_id = {verdict.id: verdict for verdict in result.verdicts}
    assert result.passed, [verdict for verdict in result.verdicts if verdict.status != "pass"]
    assert by_id["processes"].evidence == "every trained tensor bit for bit, on 2 processes"
    # What a tiny teacher wrote was kept, but not where the operator keeps answers.
    assert result.plan.distillation.sampling.completions_cache not in (None, str(answers))
    assert not answers.exists()


def test_smoke_mixes_the_photographs_as_a_recipe_mixes_its_files(tmp_path):
    from vltool.audit.smoke import DEMO_JSONL, run_smoke

    shutil.copytree(DEMO_JSONL.parent, tmp_path / "photos")
    mixture = {
        "target": {"train_jsonl": "photos/photos.jsonl", "val_jsonl": "photos/photos.jsonl"},
        "sources": [{"name": "again", "train_jsonl": "photos/photos.jsonl", "ratio": 0.5, "user_prompt": "Once more."}],
    }
    (tmp_path / "mix.json").write_text(json.dumps(mixture))
    recipe = tmp_path / "mine.yaml"
    custom = {"train_jsonl": None, "fusion_config": "mix.json", "user_prompt": "Describe."}
    recipe.write_text(json.dumps({"extends": ["stage2_llm_lora", "augment_grounding"], "custom": custom}))
    keep = tmp_path / "kept"
    result = run_smoke(str(recipe), tiny=True, nproc=None, keep=keep, reporter=Silent())
    assert result.passed, [verdict for verdict in result.verdicts if verdict.status != "pass"]
    assert [part.policy.dataset for part in result.plan.data.train] == ["photos", "again"]
    assert {part.jsonl for part in result.plan.data.train} == {str(DEMO_JSONL)}
    rows = [json.loads(line) for line in (keep / "run" / "logging.jsonl").read_text().splitlines()]
    assert any(row.get("train/augment/applied") for row in rows)


def test_the_overlays_of_smoke_say_nothing_of_their_own():
    from vltool.audit.smoke import run_smoke

    reporter = Silent()
    assert run_smoke("stage1_aligner_lora", tiny=True, nproc=None, keep=None, reporter=reporter).passed
    assert reporter.warnings == []
