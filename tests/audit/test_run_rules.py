"""The judge's rules on run folders that are written by hand; real runs are judged in test_smoke."""

from __future__ import annotations

import json
import shutil

import pytest
from planning import House, write_config

from vltool.audit.run_rules import Judge
from vltool.run import telemetry
from vltool.run.evidence import CarriedRow, Evidence, TowerRow

TRAIN = {
    "train/loss": 2.1, "train/sft_loss": 2.0, "train/llm_kd_loss": 0.1, "train/token_acc": 0.5, "train/grad_norm": 1.0,
    "train/learning_rate": 1e-4, "train/epoch": 0.5, "train/entropy": 3.0,
}  # fmt: skip
EVAL = {"eval/loss": 2.1, "eval/sft_loss": 2.0, "eval/llm_kd_loss": 0.1, "eval/token_acc": 0.5, "eval/entropy": 3.0}


def adapter(folder, base, tensors=("base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight",)):
    """A checkpoint whose headers hold `tensors`, four bytes each."""
    folder.mkdir(parents=True)
    header = json.dumps(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n, name in enumerate(tensors)}
    ).encode()
    (folder / "adapter_model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(4 * len(tensors))
    )
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))


VISUAL = {"visual_kd": {"enabled": True, "aligner": {"enabled": True}}}
ALIGNER = [TowerRow(tower="aligner", should_train=True, trainable=8, got_gradient=True)]


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Writes a sound run of stage3_gkd_forward with changes, and returns the judge's rows by name."""
    monkeypatch.chdir(tmp_path)
    house = House(tmp_path)

    def judge(
        rows=(TRAIN | {"step": 1}, EVAL | {"step": 1}),
        reload=None,
        rlhf=None,
        tuner=None,
        tensors=None,
        checkpoint=None,
        processes=1,
        visual=False,
        **changes,
    ):
        run_dir = house.folder / "run"
        shutil.rmtree(run_dir, ignore_errors=True)
        sections = ({"rlhf": rlhf} if rlhf else {}) | ({"tuner": tuner} if tuner else {})
        sections["launch"] = {"nproc_per_node": processes}
        plan = house.plan(
            "stage3_gkd_forward", model={"torch_dtype": "float32"}, training={"bf16": False, "output_dir": "run"},
            custom={"val_jsonl": str(house.val)} | (VISUAL if visual else {}), **sections,
        )  # fmt: skip
        adapter(run_dir / "checkpoint-1", checkpoint or house.base, *([tensors] if tensors else []))
        sound = {
            "towers": [TowerRow(tower="language", should_train=True, trainable=8, got_gradient=True)],
            "tower_problems": [], "kd_at_start": 0.0, "gradient_problems": [], "frozen_tensors": 5,
            "frozen_changed": [], "ce_before": 2.0, "ce_after": 1.9, "finished": True,
            "last_checkpoint": str(run_dir / "checkpoint-1"),
        }  # fmt: skip
        Evidence(**sound | changes).write(run_dir)
        for row in rows:
            split = "eval" if "eval/loss" in row else "train"
            telemetry.append_row(run_dir, row | ({f"{split}/vision_kd_loss": 0.0} if visual else {}))
        verdicts = Judge(plan, reload or (lambda *_: {"difference": 0.0, "scale": 1.0})).verdicts()
        return {verdict.id: verdict for verdict in verdicts}

    judge.house = house
    return judge


def red(rows):
    return {name for name, verdict in rows.items() if verdict.status == "fail"}


def test_a_sound_run_has_no_red_row(judged):
    alone = judged()
    assert {name: verdict.status for name, verdict in alone.items() if verdict.status != "pass"} == {
        "processes": "not asked", "vision": "not asked",
    }  # fmt: skip
    whole = judged(processes=2, ranks_differ=[], visual=True, vision_gradients={"language": 0.0})
    assert {verdict.status for verdict in whole.values()} == {"pass"}


@pytest.mark.parametrize(
    ("changes", "row", "words"),
    [
        ({"tower_problems": ["vision: trains, but the recipe freezes it"]}, "towers", "vision: trains"),
        ({"kd_at_start": 2e-6}, "teacher", "2e-06"),
        ({"kd_at_start": None}, "teacher", "not finite"),
        ({"gradient_problems": ["aligner: nothing"]}, "gradients", "aligner: nothing"),
        ({"frozen_changed": ["a.weight", "b.weight"]}, "frozen", "2 changed, the first: a.weight"),
        ({"processes": 2, "ranks_differ": ["a.weight"]}, "processes", "1 trained tensors differ between them"),
        ({"processes": 2}, "processes", "were not compared"),
        ({"ce_after": 2.0}, "learning", "2.0000 -> 2.0000"),
        ({"ce_after": float("nan")}, "learning", "not finite"),
        ({"rows": ({**TRAIN, "step": 1},)}, "metrics", "no evaluation was logged"),
        ({"rows": ({**TRAIN, "step": 1, "train/eval_loss": 1.0},)}, "metrics", "prefixed twice"),
        ({"rows": ({**TRAIN, "step": 1, "memory": 1.0},)}, "metrics", "memory has no train/ or eval/ prefix"),
        ({"rows": ({**TRAIN, "step": 1, "train/token_acc": float("inf")},)}, "metrics", "train/token_acc is inf"),
        ({"rows": ({**TRAIN, "step": 1, "train/loss": 2.100002},)}, "metrics", "differs from the sum of its parts"),
        (
            {"rows": ({k: v for k, v in TRAIN.items() if "kd" not in k} | {"step": 1},)},
            "metrics",
            "llm_kd_loss is miss",
        ),
        ({"checkpoint": "/another/base"}, "checkpoint", "its base is /another/base"),
        ({"reload": lambda *_: {"difference": 1e-3, "scale": 1.0}}, "reload", "largest difference 0.001"),
        ({"last_checkpoint": None}, "checkpoint", "left no complete checkpoint"),
    ],
)
def test_each_rule_turns_its_own_row(changes, row, words, judged):
    rows = judged(**changes)
    assert red(rows) == {row}
    assert words in rows[row].evidence


@pytest.mark.parametrize(("found", "status"), [({"aligner": 0.5}, "pass"), ({"aligner": 0.0}, "fail"), ({}, "fail")])
def test_vision_terms_have_to_reach_what_trains_before_them(found, status, judged):
    rows = judged(towers=ALIGNER, visual=True, vision_gradients=found)
    assert rows["vision"].status == status
    assert "aligner" in rows["vision"].evidence


def test_vision_terms_that_were_not_measured_are_not_reached(judged):
    assert judged(towers=ALIGNER, visual=True)["vision"].status == "not reached"


def test_a_checkpoint_holds_the_towers_that_trained_and_no_others(judged):
    rows = judged(towers=[TowerRow(tower="aligner", should_train=True, trainable=8, got_gradient=True)])
    assert red(rows) == {"checkpoint"}
    assert rows["checkpoint"].evidence == "holds language; trained were aligner"
    assert rows["reload"].status == "not reached"


def test_an_adapter_that_starts_away_from_its_base_is_meant(judged):
    none = dict.fromkeys(("lora_rank", "lora_alpha", "lora_dropout"))
    rows = judged(tuner={"tuner_type": "fourierft"} | none, kd_at_start=1.5)
    assert rows["teacher"].status == "not asked"


def test_what_an_earlier_stage_changed_may_be_in_the_checkpoint(judged):
    names = [
        "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight",
        "base_model.model.model.visual.merger.linear_fc1.lora_A.weight",
    ]
    earlier = judged.house.folder / "earlier"
    adapter(earlier, judged.house.base, names[1:])
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "modules_to_save": None}
    document = json.loads((earlier / "adapter_config.json").read_text())
    (earlier / "adapter_config.json").write_text(json.dumps(document | config))
    changes = {"tuner": {"resume_from_checkpoint": str(earlier)}, "kd_at_start": 0.5, "tensors": names}
    assert red(judged(**changes)) == {"checkpoint"}
    rows = judged(**changes, carried=[CarriedRow(tower="aligner", adapted=1)])
    assert red(rows) == set()
    assert rows["teacher"].status == "not asked"


def test_a_merged_stage_has_moved_away_from_its_teacher(judged):
    house = judged.house
    earlier, merged = house.folder / "earlier", house.folder / "merged"
    adapter(earlier, house.base)
    document = json.loads((earlier / "adapter_config.json").read_text())
    (earlier / "adapter_config.json").write_text(json.dumps(document | {"peft_type": "LORA"}))
    tuner = {"resume_from_checkpoint": str(earlier), "merge_previous": str(merged)}
    rows = judged(tuner=tuner, kd_at_start=0.5, checkpoint=merged)
    assert rows["teacher"].status == "not asked"
    assert red(rows) == set()


def test_a_teacher_of_another_shape_is_meant(judged):
    other = write_config(judged.house.folder / "other", depth=27)
    rows = judged(rlhf={"teacher_model": str(other)}, kd_at_start=1.5)
    assert rows["teacher"].status == "not asked"
    assert red(rows) == set()


def test_what_the_run_did_not_come_to_is_not_reached(judged):
    rows = judged(
        processes=2, visual=True, rows=(), gradient_problems=None, frozen_changed=None, ce_before=None, ce_after=None,
        kd_at_start=None, finished=False, last_checkpoint=None,
    )  # fmt: skip
    assert rows.pop("towers").status == "pass"
    assert {verdict.status for verdict in rows.values()} == {"not reached"}
