"""Tokens of coordinates are told from others, and what rows say of each kind is what full logits say."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

pytest.importorskip("torch")

import torch
from PIL import Image

from vltool.data.conversation import Prompts
from vltool.data.dataset import CaptionDataset
from vltool.data.geometry import KINDS
from vltool.data.geometry_spans import Span, geometry_spans
from vltool.data.samples import OneAfterTheOther, Samples
from vltool.recipe.validate import load_recipe
from vltool.run.launch import make_tiny
from vltool.run.plan import make_plan
from vltool.training import swift_bridge
from vltool.training.collate import FACTS, Collator, EncodedRecords, for_the_model
from vltool.training.geometry_tokens import GEOMETRIES, number_tokens, numbered
from vltool.training.losses import IGNORE

ANSWER = (
    '{"object_1": {"desc": "größe 漢字 👩‍👧", "bbox_2d": [17, 203, 998, 1000]}, '
    '"object_2": {"desc": "\\"bbox_2d\\": [1, 2]", "poly": [[1, 2], [300, 4], [5, 60]]}, '
    '"object_3": {"desc": "[[1, 2]]}, ", "line": [[5, 10], [10, 20]]}}'
)
END = "<|im_end|>\n"


@pytest.fixture(scope="module")
def joining(tmp_path_factory):
    """A checkpoint whose tokens join brackets with what stands beside them, as Qwen's do."""
    return make_tiny(tmp_path_factory.mktemp("joining") / "qwen3-vl", [ANSWER, ANSWER])


@pytest.fixture(scope="module")
def tokenizer(joining):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(joining)


def numbers_by_bytes(tokenizer, ids, answer):
    """The number of each token's geometry, from where the coordinates' bytes lie: a byte-level token says its own."""
    of_byte, cursor = [0] * len(answer.encode()), 0
    for item in json.loads(answer).values():
        desc, (kind, value) = item["desc"], list(item.items())[1]
        cursor = answer.index(json.dumps(desc, ensure_ascii=False), cursor)
        cursor += len(json.dumps(desc, ensure_ascii=False))
        start = answer.index(json.dumps(value), cursor)
        cursor = start + len(json.dumps(value))
        start, end = (len(answer[:place].encode()) for place in (start, cursor))
        of_byte[start:end] = [KINDS.index(kind) + 1] * (end - start)
    numbers, at = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        numbers.append(max(of_byte[at : at + len(token)], default=0))
        at += len(token)
    return numbers


def labelled(*parts):
    return [IGNORE] * 5 + [label for part in parts for label in part]


@pytest.mark.parametrize("checkpoint", ["joining", "tiny"])
def test_tokens_are_numbered_wherever_labels_were_cut(checkpoint, request):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(checkpoint))
    ids = tokenizer(ANSWER + END)["input_ids"]
    want = numbers_by_bytes(tokenizer, ids, ANSWER)
    assert {*want} == {0, 1, 2, 3}
    tokens = tokenizer.convert_ids_to_tokens(ids)
    joins = [token for number, token in zip(want, tokens, strict=True) if number and token.strip("[]0123456789,Ġ")]
    assert bool(joins) == (checkpoint == "joining"), tokens

    def numbers(labels):
        return number_tokens(tokenizer, ANSWER + END, geometry_spans(ANSWER), labels).tolist()

    assert numbers(labelled(ids)) == [0] * 5 + want
    assert numbers(labelled(ids, [IGNORE] * 3)) == [0] * 5 + want + [0] * 3
    half = want.index(1) + 5
    # Cut at its end; cut at its beginning; after labels of a prompt.
    assert numbers(labelled(ids[:half])) == [0] * 5 + want[:half]
    assert numbers(labelled(ids[half:])) == [0] * 5 + want[half:]
    assert numbers(labelled([7, 8], [IGNORE], ids)) == [0] * 8 + want
    # Tokens of something else, and cut at both ends: which they are cannot be told.
    for labels in (labelled(ids[::-1]), labelled(ids[1:-1]), labelled([ids[0] + 1], ids[1:])):
        assert numbers(labels) == [0] * len(labels)
    assert not number_tokens(tokenizer, ANSWER + END, (), labelled(ids)).any()


def test_labels_that_begin_and_end_an_answer_alike_are_not_guessed(tokenizer):
    first, last = Span(0, 1, "line"), Span(2, 3, "line")
    (x,) = tokenizer("x")["input_ids"]

    def numbers(*spans):
        return number_tokens(tokenizer, "xyx", spans, labelled([x])).tolist()

    assert numbers(first) == numbers(last) == [0] * 6
    assert numbers(first, last) == [0] * 5 + [3]


def test_a_batch_numbers_the_tokens_that_hold_coordinates(overlay, joining, tmp_path):
    """Records of every form, through the template, the collator and the shift of labels."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    geometries = [
        {"bbox_2d": [3, 4, 60, 64]}, {"poly": [0, 0, 64, 0, 33.3, 61]}, {"line": [1, 2, 3, 4]},
        {"bbox_2d": [0, 0, 1, 2]},
    ]  # fmt: skip
    descs = ["größe 漢字 👩‍👧", 'said "bbox_2d": [1, 2]', '", "poly": [[1, 2]]}', "e\u0301 \\ \n\u2028"]
    objects = [{"desc": desc} | geometry for desc, geometry in zip(descs, geometries, strict=True)]
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
    record = {"images": ["a.png"], "width": 64, "height": 64}
    lines = [
        record | {"objects": objects[:1]}, record | {"objects": objects[::-1]}, record | {"summary": ANSWER},
        {"images": ["a.png"], "messages": turns}, {"messages": turns}, record | {"objects": objects * 2},
    ]  # fmt: skip
    path = tmp_path / "forms.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = overlay("stage2_llm_lora", model={"model": str(joining), "torch_dtype": "float32"})
    built = swift_bridge.build(make_plan(load_recipe(str(recipe)), cwd=tmp_path))
    dataset = CaptionDataset(path, prompts=Prompts("?"), emit_norm="norm1000", use_summary=None, max_pixels=64 * 64)
    blank = swift_bridge.blank_image(built)
    samples = EncodedRecords(
        Samples([dataset], OneAfterTheOther([len(dataset)], seed=None)), swift_bridge.encoder(built), blank
    )
    # The last is a filler.
    chosen = [samples[place] for place in range(len(lines) + 1)]
    batch = Collator(built.template.data_collator, blank)([dict(sample) for sample in chosen])
    labels_BS = batch["labels"]
    labels_N = labels_BS[:, 1:].flatten()
    numbers_BS = numbered(batch, labels_N).view(len(chosen), -1)
    tokenizer = built.template.tokenizer
    counts = dict.fromkeys(range(4), 0)
    for place, (labels_S, numbers_S) in enumerate(zip(labels_BS[:, 1:], numbers_BS, strict=True)):
        ids = labels_S[labels_S != IGNORE].tolist()
        assert not numbers_S[labels_S == IGNORE].any()
        got = numbers_S[labels_S != IGNORE].tolist()
        if place in (0, 1, 5):
            answer = dataset[place].messages[-1]["content"]
            assert got == numbers_by_bytes(tokenizer, ids, answer)
            for number in counts:
                counts[number] += got.count(number)
        else:
            assert not any(got)
    assert all(counts.values())
    assert "vltool_geometry" not in for_the_model(batch)
    assert numbered(Collator(built.template.data_collator, blank)([blank.filler()]), labels_N) is None


@pytest.mark.parametrize("recipe", ["stage2_llm_lora", "stage3_gkd_forward"])
def test_rows_say_of_each_kind_what_full_logits_say(recipe, overlay, train, joining, monkeypatch):
    """Two micro-batches a step; the last row holds two steps."""
    from vltool.training.trainer import CaptionTrainer

    sums = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
    row_of = {1: 1, 2: 2, 3: 4, 4: 4}
    real = CaptionTrainer._losses

    def watched(self, model, inputs, label_tokens, *, with_kd):
        with torch.no_grad():
            logits_BSV = model(**for_the_model(inputs)).logits.double()
        split = "train" if model.training else "eval"
        step = self.state.global_step + model.training
        for logits_SV, labels_S in zip(logits_BSV[:, :-1], inputs["labels"][:, 1:], strict=True):
            seen = labels_S != IGNORE
            logits_PV, labels_P = logits_SV[seen], labels_S[seen]
            answer = self.template.tokenizer.decode(labels_P).removesuffix(END)
            numbers_P = torch.tensor(numbers_by_bytes(self.template.tokenizer, labels_P.tolist(), answer))
            ce_P = torch.nn.functional.cross_entropy(logits_PV, labels_P, reduction="none")
            correct_P = (logits_PV.argmax(-1) == labels_P).double()
            for number, name in enumerate(GEOMETRIES, 1):
                these = numbers_P == number
                sums[split, row_of[step], name] += torch.stack((ce_P[these].sum(), correct_P[these].sum(), these.sum()))
        assert inputs[FACTS].label_tokens == int((inputs["labels"][:, 1:] != IGNORE).sum())
        return real(self, model, inputs, label_tokens, with_kd=with_kd)

    monkeypatch.setattr(CaptionTrainer, "_losses", watched)
    training = {
        "max_steps": 4, "save_steps": 4, "eval_steps": 4, "logging_steps": 2, "effective_batch_size": 4,
        "learning_rate": 3e-2, "bf16": False, "output_dir": str(overlay(recipe).parent / "rows"),
    }  # fmt: skip
    model = {"model": str(joining), "torch_dtype": "float32"}
    run = train(overlay(recipe, model=model, training=training))
    want = {}
    for (split, step, name), (ce, correct, count) in sums.items():
        if count:
            want[step, f"{split}/sft_loss_{name}"] = float(ce / count)
            want[step, f"{split}/token_acc_{name}"] = float(correct / count)
    got = {
        (row["step"], name): value for row in run.rows for name, value in row.items()
        if name.endswith(tuple(f"_{geometry}" for geometry in GEOMETRIES))
    }  # fmt: skip
    assert got == pytest.approx(want, abs=1e-5)
    assert len(got) == 4 * 2 * len(GEOMETRIES)
    assert any(value > 0 for (_, name), value in got.items() if "token_acc" in name)
