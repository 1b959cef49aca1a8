"""Findings on records beside one another: each id appears where it should, and does not where it should not."""

from __future__ import annotations

import importlib
import json
import struct

import pytest
from PIL import Image
from planning import House
from tokenizers import Tokenizer, models, pre_tokenizers

from vltool.audit.data_rules import judge
from vltool.audit.record_rules import RULES, judge_records
from vltool.audit.targets import read_targets

SEVERITY = {rule.id: rule.severity for rule in RULES}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A house whose base has a tokenizer that gives each byte a token, and with three pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLTOOL_CACHE", str(tmp_path / "cache"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    house = House(tmp_path)
    tokenizer.save(str(house.base / "tokenizer.json"))
    (house.base / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    for name, colour in {"a": "red", "copy": "red", "b": "blue", "c": "green"}.items():
        Image.new("RGB", (96, 64), colour).save(tmp_path / f"{name}.png")
    return house


def caption(image="a", *, desc="cat", **changes):
    box = {"desc": desc, "bbox_2d": [1, 2, 60, 20]}
    return {"images": [f"{image}.png"], "width": 96, "height": 64, "objects": [box]} | changes


def talk(answer, *, question="hello", images=()):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [f"{image}.png" for image in images]}


GOOD = (caption("a"), caption("b"))
VAL = (caption("c"),)


@pytest.fixture
def found(house):
    """Finds what there is to say of the records of a recipe, as {id: finding}; all of one id are listed in `all`."""

    def look(train=GOOD, val=VAL, extends="base", **sections):
        for path, records in ((house.train, train), (house.val, val)):
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        custom = {"val_jsonl": str(house.val), "user_prompt": "?"} | sections.pop("custom", {})
        recipe = house.write(extends, custom=custom, **sections)
        named = read_targets([str(recipe)], recipe=None, env=house.env)
        look.judged = [judge(records) for records in named.records]
        look.all = judge_records(look.judged)
        assert all(SEVERITY[one.id] in ("error", one.severity) or one.severity == "note" for one in look.all)
        return {one.id: one for one in reversed(look.all)}

    return look


def place(finding):
    return finding.where.file.rsplit("/", 1)[1], finding.where.line


def test_good_records_have_no_finding(found):
    assert found() == {}


def test_a_record_again_is_a_duplicate(found):
    duplicate = found((*GOOD, caption("a"), caption("copy")))["records-duplicate"]
    assert place(duplicate) == ("train.jsonl", 3)
    assert "2 of 4 records to train on" in duplicate.what
    assert duplicate.evidence.count("train.jsonl:1") == 2
    assert "validate on" in found(GOOD, VAL * 2)["records-duplicate"].what


def test_another_answer_is_none_but_is_a_contradiction(found):
    told = found((*GOOD, caption("a", desc="dog")))
    assert list(told) == ["records-contradict"]
    assert (place(told["records-contradict"]), told["records-contradict"].severity) == (("train.jsonl", 3), "note")
    assert "records-contradict" not in found((talk("a"), talk("b"), *GOOD))


@pytest.mark.parametrize("val", [caption("b", desc="other"), caption("copy", desc="other"), talk("good day")])
def test_what_is_trained_on_and_validated_on_leaks(found, val):
    leak = found((*GOOD, talk("good day")), (*VAL, val))["records-leak"]
    assert place(leak) == ("val.jsonl", 2)
    assert "1 of 2 validation records" in leak.what
    assert "train.jsonl:" in leak.evidence


def test_files_of_two_runs_are_not_compared(house, found):
    found()
    other = house.write("base", "other", custom={"train_jsonl": str(house.val), "user_prompt": "?"})
    targets = [str(house.folder / "mine.yaml"), str(other)]
    named = read_targets(targets, recipe=None, env=house.env)
    assert judge_records([judge(records) for records in named.records]) == []


@pytest.mark.parametrize(
    ("tuner", "severity", "words"),
    [
        ({"freeze_vit": True, "freeze_aligner": True}, "warning", "none of 1 records shows an image"),
        ({"freeze_vit": True, "freeze_aligner": False}, "error", "the recipe trains the aligner"),
        ({"freeze_vit": False, "freeze_aligner": False}, "error", "trains the vision tower and the aligner"),
    ],
)
def test_records_without_an_image_are_noticed(found, tuner, severity, words):
    blind = found((talk("good day"),), tuner={"freeze_llm": False} | tuner)["records-vision"]
    assert blind.severity == severity
    assert words in blind.what
    assert "records-vision" not in found((talk("good day"), talk("yes", images=["a"])), tuner=tuner)


def test_hardly_a_label_among_the_tokens_is_noticed(found):
    few = found((caption("a"), talk("y", question="why " * 500)))
    assert "records-supervised" not in few
    few = found((talk("y", question="why " * 500, images=["a"]),))["records-supervised"]
    assert few.what.startswith("0.")
    assert place(few)[0] == "train.jsonl"


def test_answers_that_sampling_would_cut_are_counted(found):
    long = caption("b", desc="c" * 300)
    gkd = {"rlhf_type": "gkd", "lmbda": 0.5, "max_completion_length": 200}
    cut = found((caption("a"), long), extends="stage3_gkd", rlhf=gkd)["records-completion"]
    assert (place(cut), cut.severity) == (("train.jsonl", 2), "warning")
    assert "1 of 2 answers" in cut.what
    assert "the longest" in cut.evidence
    rare = found((*[caption("a")] * 150, long), extends="stage3_gkd", rlhf=gkd)["records-completion"]
    assert rare.severity == "note"
    for changes in ({"max_completion_length": 400}, {"lmbda": 0.0, "seq_kd": False}):
        assert "records-completion" not in found((*GOOD, long), extends="stage3_gkd", rlhf=gkd | changes)


def test_the_longest_answer_is_as_long_as_a_model_has_to_write(found):
    answer = '{"object_1": {"desc": "cat", "bbox_2d": [10, 31, 625, 312]}}'
    for limit, cut in ((len(answer) + 9, True), (len(answer) + 10, False)):  # <|im_end|> has ten letters
        gkd = {"rlhf_type": "gkd", "lmbda": 0.5, "max_completion_length": limit}
        assert ("records-completion" in found((caption("a"),), extends="stage3_gkd", rlhf=gkd)) == cut


def test_an_answer_that_breaks_off_is_at_its_line(found):
    cut = found((*GOOD, talk('{"a": [1, 2', images=["c"])), ())
    assert (place(cut["records-truncated"]), list(cut)) == (("train.jsonl", 3), ["records-truncated"])
    assert "records-truncated" not in found((*GOOD, talk('{"a": [1, 2]}', images=["c"])), ())


def test_an_object_twice_is_at_its_line(found):
    objects = [{"desc": "cat", "bbox_2d": [1, 2, 30, 20]}, {"desc": "cat", "bbox_2d": [1, 2, 30, 21]}]
    twice = found((*GOOD, caption("a", objects=[*objects, objects[0]])))["record-object-twice"]
    assert (place(twice), twice.what) == (("train.jsonl", 3), "objects[2] is objects[0] again")
    assert "record-object-twice" not in found((*GOOD, caption("c", objects=objects)), ())


def test_what_is_not_listed_is_counted(found):
    broken = [talk(f'{{"a": [{n}', images=["c"]) for n in range(103)]
    found((*GOOD, *broken), ())
    told = [one for one in found.all if one.id == "records-truncated"]
    assert len(told) == 101
    assert "3 more records" in told[-1].what


def longest_of(found, train=GOOD):
    """Tokens of the longest of these records."""
    found(train)
    return found.judged[0].scan.longest[0]


def test_a_knob_far_above_all_lengths_is_noted_with_what_would_do(found):
    usual = [caption("a", desc=f"cat {n:03}") for n in range(60)]
    longest = longest_of(found, usual)
    knob = -(-longest // 256) * 256
    spread = found(usual, global_max_length=16 * knob)["records-length-spread"]
    assert f"{knob} would do for all" in spread.what
    assert spread.where.file.endswith("mine.yaml")
    assert "records-length-spread" not in found(usual, global_max_length=2 * longest)
    assert "records-length-spread" not in found(usual[:40], global_max_length=16 * knob)
    rare = (*usual * 2, caption("b", desc="c" * 12 * knob))
    spread = found(rare, global_max_length=16 * knob)["records-length-spread"]
    assert "only 1 need more than" in spread.what


ENLARGE = {"name": "resize_by_scale", "params": {"scales": [4.0], "prob": 1.0}}
needs_augmentation = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("cv2", "shapely")), reason="no augmentation here"
)


@needs_augmentation
def test_what_augmentation_makes_too_long_is_told(found):
    augmentation = {"enabled": True, "bypass_prob": 0.0, "ops": [ENLARGE]}
    limit = longest_of(found)
    long = found(custom={"augmentation": augmentation}, global_max_length=limit)["record-augmented-length"]
    assert f"2 of 2 samples of the first epoch longer than the limit of {limit} tokens" in long.what
    assert place(long)[0] == "train.jsonl"
    assert "record-augmented-length" not in found(custom={"augmentation": augmentation}, global_max_length=900)
    assert "record-augmented-length" not in found(global_max_length=limit)


@needs_augmentation
def test_records_that_cannot_be_used_are_not_drawn(found):
    augmentation = {"enabled": True, "bypass_prob": 0.0, "ops": [ENLARGE]}
    bad = caption("a", width=1)
    limit = longest_of(found)
    told = found((bad, *GOOD), custom={"augmentation": augmentation}, global_max_length=limit)
    assert "2 of 2 samples" in told["record-augmented-length"].what
    assert "record-augmented-length" not in found(
        (bad,), custom={"augmentation": augmentation}, global_max_length=limit
    )


@needs_augmentation
def test_a_host_without_augmentation_says_so(found, monkeypatch):
    monkeypatch.setattr("vltool.run.data._AUGMENT", {"no_such_package": "OpenCV"})
    augmentation = {"enabled": True, "ops": [ENLARGE]}
    note = found(custom={"augmentation": augmentation})["record-augmented-length"]
    assert note.severity == "note"
    assert "OpenCV" in note.what


def test_every_rule_is_told_in_words():
    for rule in RULES:
        assert (rule.means[0].islower(), rule.why[-1], rule.remedy[-1]) == (True, ".", "."), rule.id
