"""Answers in place of the operator's: whose they are, that they saw the image, and what a step makes of them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from vltool.run.distillation import SamplingPlan
from vltool.run.telemetry import read_rows
from vltool.training.generate import answered, draw_source, generate, prompt_of
from vltool.training.losses import IGNORE
from vltool.training.teacher import AdaptersOff, FrozenCopy, HeadTap
from vltool.training.vision_kd import FeatureTap


def plan(**changes):
    wanted = {"lmbda": 0.5, "seq_kd_ratio": 0.5, "max_completion_length": 12, "temperature": 1.0} | changes
    return SamplingPlan(**wanted)


def test_sources_come_as_often_as_they_are_asked_for():
    drawn = [draw_source(plan(lmbda=0.5, seq_kd_ratio=0.5), seed=42, step=step) for step in range(4000)]
    shares = {source: drawn.count(source) / len(drawn) for source in ("student", "teacher", "dataset")}
    assert shares == pytest.approx({"student": 0.5, "teacher": 0.25, "dataset": 0.25}, abs=0.03)
    assert drawn == [draw_source(plan(), seed=42, step=step) for step in range(4000)]
    assert drawn != [draw_source(plan(), seed=43, step=step) for step in range(4000)]


@pytest.mark.parametrize(
    ("lmbda", "ratio", "only"), [(1.0, 0.0, "student"), (0.0, 1.0, "teacher"), (0.0, 0.0, "dataset")]
)
def test_a_source_alone(lmbda, ratio, only):
    assert {draw_source(plan(lmbda=lmbda, seq_kd_ratio=ratio), seed=1, step=step) for step in range(99)} == {only}
    assert draw_source(None, seed=1, step=0) == "dataset"


def test_the_first_steps_may_be_told():
    told = plan(lmbda=0.0, seq_kd_ratio=0.0, first=("student", "teacher"))
    assert [draw_source(told, seed=1, step=step) for step in range(4)] == ["student", "teacher", "dataset", "dataset"]


tokens = st.lists(st.integers(0, 99), min_size=1, max_size=9)


@given(context=tokens, answer=tokens, tail=st.integers(0, 3), again=tokens, earlier=st.booleans())
def test_a_prompt_is_what_stands_before_the_last_answer(context, answer, tail, again, earlier):
    before = [1, *again, 2] if earlier else []
    ids = [*before, *context, *answer, *[7] * tail]
    labels = [IGNORE, *again, IGNORE] if earlier else []
    labels = [*labels, *[IGNORE] * len(context), *answer, *[IGNORE] * tail]
    image = {"pixel_values": torch.ones(4, 2), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    sample = {"input_ids": ids, "labels": labels, "mm_token_type_ids": torch.arange(len(ids)), **image}
    prompt = prompt_of(sample)
    assert prompt["input_ids"] == [*before, *context]
    made = answered(prompt, [5, 6])
    assert made["input_ids"] == [*before, *context, 5, 6]
    assert made["labels"] == [IGNORE] * len(prompt["input_ids"]) + [5, 6]
    assert made["mm_token_type_ids"].tolist() == [*range(len(prompt["input_ids"])), 0, 0]
    assert made["pixel_values"] is image["pixel_values"]
    assert made["length"] == len(made["labels"])


@pytest.fixture(scope="module")
def model(tiny):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32).eval()


@pytest.fixture
def ask(model):
    """Samples answers to prompts, each an image and a text of its own."""
    config, text = model.config, model.config.get_text_config()

    def run(*pictures, temperature=1e-3, seed=5, length=12, end_ids=(), never_ids=(), writer=model):
        prompts = []
        for number, picture in enumerate(pictures):
            ids = [
                3,
                config.vision_start_token_id,
                config.image_token_id,
                config.vision_end_token_id,
                *range(4, 9 + number),
            ]
            kinds = torch.tensor([int(token == config.image_token_id) for token in ids])
            pixels, grid = torch.full((4, 1536), picture), torch.tensor([[1, 2, 2]])
            prompts.append(
                {"input_ids": ids, "mm_token_type_ids": kinds, "pixel_values": pixels, "image_grid_thw": grid}
            )
        wanted = plan(temperature=temperature, max_completion_length=length)
        never = [config.image_token_id, config.video_token_id, *never_ids]
        return generate(
            writer, prompts, wanted, end_ids=end_ids or [text.vocab_size - 1], pad_id=0, never_ids=never, seed=seed
        )

    return run


def test_a_left_padded_batch_answers_as_each_prompt_alone(ask):
    together = ask(0.5, -0.5, 0.9)
    assert len({tuple(answer) for answer in together}) == 3
    assert together[0] == ask(0.5)[0]


@pytest.fixture(scope="module")
def student(tiny):
    """The model under an adapter that has moved away from it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    return get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()


@pytest.fixture(scope="module")
def writers(model, student):
    """The student, and both kinds of teacher of one that started as `model`."""
    off = AdaptersOff(student, HeadTap(student), FeatureTap(student), None)
    copy = FrozenCopy(model, None, offload=False)
    return {"student": lambda: nullcontext(student), "adapters_off": off.writing, "copy": copy.writing}


# At a temperature at which several tokens are about as likely, so that a small change moves a draw.
CLOSE = {"temperature": 0.05, "length": 60}


@pytest.mark.parametrize("name", ["student", "adapters_off", "copy"])
def test_another_image_gives_another_answer(name, ask, writers):
    with writers[name]() as writer:
        answer = ask(0.5, writer=writer, **CLOSE)
        assert ask(0.5, writer=writer, **CLOSE) == answer
        assert ask(-0.9, writer=writer, **CLOSE) != answer


def test_the_student_without_its_adapter_writes_as_its_base(ask, student, writers):
    with writers["adapters_off"]() as writer:
        assert ask(0.5, writer=writer, **CLOSE) == ask(0.5, **CLOSE)
    assert ask(0.5, writer=student, **CLOSE) != ask(0.5, **CLOSE)


def test_numbers_are_drawn_by_the_seed_and_disturb_no_others(ask):
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    first = ask(0.5, temperature=1.0, seed=5)
    assert torch.equal(torch.rand(2), want)
    assert first == ask(0.5, temperature=1.0, seed=5)
    assert first != ask(0.5, temperature=1.0, seed=6)


def test_an_answer_ends_with_what_ended_it_and_never_holds_a_placeholder(ask):
    (whole,) = ask(0.5, temperature=1.0)
    assert len(whole) == 12
    (cut,) = ask(0.5, temperature=1.0, end_ids=[whole[4]])
    assert cut == whole[: whole.index(whole[4]) + 1]
    (other,) = ask(0.5, temperature=1.0, never_ids=whole)
    assert not set(other) & set(whole)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["stage3_gkd", "stage3_gkd_visual", ["stage3_gkd", "full"]])
def test_steps_train_on_each_kind_of_text(recipe, overlay, train):
    training = {"max_steps": 3, "effective_batch_size": 4, "per_device_train_batch_size": 2}
    run = train(overlay(recipe, training=training, rlhf={"max_completion_length": 8}), probe=True)
    rows = [row for row in read_rows(run.run_dir) if "train/loss" in row]
    assert [next(name for name in row if name.startswith("train/source/")) for row in rows] == [
        "train/source/dataset", "train/source/student", "train/source/teacher",
    ]  # fmt: skip
    dataset, student, teacher = rows
    assert "train/sft_loss" not in student
    assert "train/token_acc" not in student
    assert "train/entropy" not in student
    # Nobody knows where coordinates stand in what is sampled.
    assert [sum("_bbox" in name for name in row) for row in rows] == [2, 0, 0]
    assert student["train/loss"] == pytest.approx(
        student["train/llm_kd_loss"] + student.get("train/vision_kd_loss", 0.0), abs=1e-9
    )
    for row in (dataset, teacher):
        parts = 0.3 * row["train/sft_loss"] + row["train/llm_kd_loss"] + row.get("train/vision_kd_loss", 0.0)
        assert row["train/loss"] == pytest.approx(parts, abs=1e-6)
    lines = [json.loads(line) for line in (Path(run.run_dir) / "completions.jsonl").read_text().splitlines()]
    assert {(line["step"], line["source"]) for line in lines} == {(2, "student"), (3, "teacher")}


def test_a_run_on_its_own_text_alone_says_why_nothing_trained(overlay, train):
    sampling = {"lmbda": 0.999, "seq_kd": False, "max_completion_length": 4}
    run = train(overlay("stage3_gkd", rlhf=sampling, training={"max_steps": 1, "save_steps": 1, "eval_steps": 1}))
    (warning,) = [problem for problem in run.warnings if "should train" in problem.what]
    assert "language" in warning.what
    assert "every step was on the student's own text" in warning.what
