"""The look at every record before a worker starts: what stops a run, what is left out, what is not looked at."""

from __future__ import annotations

import json
import struct

import pytest
from planning import House, write_adapter
from tokenizers import Tokenizer, models, pre_tokenizers

from vltool.audit.preflight import SHOWN, audited
from vltool.data import augmented_lengths, scan
from vltool.errors import BadContent, InvalidInput


class Reporter:
    """Keeps what it is told."""

    def __init__(self):
        self.stages, self.warnings = [], []

    def stage(self, text):
        self.stages.append(text)

    def progress(self, what, done, total): ...

    def warn(self, problem):
        self.warnings.append(str(problem))


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A house whose base has a tokenizer that gives each byte a token."""
    monkeypatch.chdir(tmp_path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    house = House(tmp_path)
    tokenizer.save(str(house.base / "tokenizer.json"))
    (house.base / "preprocessor_config.json").write_text("{}")
    (house.base / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return house


GOOD = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}
BAD = {"messages": [{"role": "user", "content": "hello <|im_end|>"}, {"role": "assistant", "content": "good day"}]}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def look(house, **sections):
    """The audited plan and the reporter."""
    custom = {"val_jsonl": str(house.val), "user_prompt": "?"} | sections.pop("custom", {})
    reporter = Reporter()
    return audited(house.plan(custom=custom, **sections), reporter), reporter


def refused(house, **sections):
    with pytest.raises(BadContent) as caught:
        look(house, **sections)
    return caught.value.problems


SKIP = {"data": {"on_bad_record": "skip"}}


def test_good_records_change_nothing(house):
    write(house.train, GOOD, GOOD)
    write(house.val, GOOD)
    plan, reporter = look(house)
    assert plan == house.plan(custom={"val_jsonl": str(house.val), "user_prompt": "?"})
    assert reporter.stages == ["reading every record"]
    assert reporter.warnings == []


def test_bad_records_of_both_files_are_named_by_their_lines(house):
    write(house.train, GOOD, BAD, GOOD)
    write(house.val, BAD, GOOD)
    problems = refused(house)
    assert [str(problem.where) for problem in problems] == [f"{house.train}:2", f"{house.val}:1"]
    assert all("<|im_end|>" in problem.what for problem in problems)


@pytest.mark.parametrize(("bad", "more"), [(SHOWN, None), (SHOWN + 1, 1), (SHOWN + 7, 7)])
def test_of_many_bad_records_the_first_are_shown_and_the_others_counted(bad, more, house):
    write(house.train, GOOD, *[BAD] * (bad - 1))
    write(house.val, BAD, GOOD)
    problems = refused(house)
    shown = [f"{house.train}:{line}" for line in range(2, bad + 1)] + [f"{house.val}:1"]
    assert [str(problem.where) for problem in problems[:SHOWN]] == shown[:SHOWN]
    if more is None:
        assert len(problems) == SHOWN
    else:
        (rest,) = problems[SHOWN:]
        assert rest.what == f"and {more} more like these"
        assert "data.on_bad_record: skip" in rest.do


def test_the_rest_is_counted_beyond_what_a_scan_keeps(house, monkeypatch):
    monkeypatch.setattr(scan, "MOST_PROBLEMS", SHOWN)
    write(house.train, GOOD, *[BAD] * 50)
    write(house.val, GOOD)
    assert refused(house)[-1].what == "and 30 more like these"


def test_skipped_records_are_reported_and_left_out(house):
    write(house.train, BAD, GOOD, BAD)
    write(house.val, GOOD, BAD)
    plan, reporter = look(house, **SKIP)
    assert (plan.data.train[0].skip, plan.data.val[0].skip) == ((0, 2), (1,))
    places = [f"{house.train}:1", f"{house.train}:3", f"{house.val}:2"]
    assert [place in warning for place, warning in zip(places, reporter.warnings, strict=True)] == [True] * 3


def test_every_skip_is_told_or_counted(house, monkeypatch):
    monkeypatch.setattr(scan, "MOST_PROBLEMS", 5)
    write(house.train, GOOD, *[BAD] * 9)
    write(house.val, GOOD)
    plan, reporter = look(house, **SKIP)
    assert plan.data.train[0].skip == tuple(range(1, 10))
    assert len(reporter.warnings) == 6
    assert reporter.warnings[-1] == "and 4 more like these, left out too"


@pytest.mark.parametrize("file", ["train", "val"])
@pytest.mark.parametrize("sections", [SKIP, {}], ids=["skip", "error"])
def test_a_file_without_one_good_record_stops_the_run(file, sections, house):
    write(house.train, GOOD)
    write(house.val, GOOD)
    write(getattr(house, file), *[BAD] * 25)
    problems = refused(house, **sections)
    assert len(problems) == SHOWN + 1
    assert problems[-1].what == f"{getattr(house, file)}: not one record can be used"


def test_records_beyond_the_limits_are_not_looked_at(house):
    write(house.train, GOOD, GOOD, BAD)
    write(house.val, GOOD, BAD)
    assert len(refused(house, custom={"train_sample_limit": 2})) == 1
    assert len(refused(house, custom={"val_sample_limit": 1})) == 1
    assert len(refused(house, custom={"sample_limit": 2, "val_sample_limit": 9})) == 1
    look(house, custom={"train_sample_limit": 2, "val_sample_limit": 1})
    look(house, custom={"sample_limit": 1})
    write(house.train, BAD, GOOD)
    assert "not one record can be used" in refused(house, custom={"sample_limit": 1}, **SKIP)[-1].what


def test_lengths_are_measured_with_the_bases_tokenizer(house):
    write(house.train, GOOD)
    write(house.val, GOOD)
    counted = refused(house, global_max_length=10)[0].what
    length = int(counted.split()[3])
    look(house, global_max_length=length)
    problem, none_left = refused(house, global_max_length=length - 1)
    assert f"over the limit of {length - 1}" in problem.what
    assert "not one record" in none_left.what


def test_no_validation_data_is_no_problem(house):
    write(house.train, GOOD, BAD)
    plan, _ = look(house, custom={"val_jsonl": None}, **SKIP)
    assert ([part.skip for part in plan.data.train], plan.data.val) == ([(1,)], ())


def test_pictures_are_found_where_the_environment_says(house, tmp_path):
    record = {
        "images": ["a.png"], "width": 64, "height": 64, "objects": [{"desc": "box", "bbox_2d": [1, 2, 30, 40]}],
    }  # fmt: skip
    write(house.train, record)
    write(house.val, GOOD)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"never opened")
    custom = {"val_jsonl": str(house.val), "user_prompt": "?"}
    audited(house.plan(custom=custom, shell={"ROOT_IMAGE_DIR": str(tmp_path / "pictures")}), Reporter())
    with pytest.raises(BadContent, match=r"a\.png"):
        audited(house.plan(custom=custom), Reporter())


@pytest.fixture
def picture(house, tmp_path):
    """The training file describes four pictures of four tokens each, and nobody can open them."""
    (tmp_path / "a.png").write_bytes(b"never opened")
    record = {
        "images": ["a.png"], "width": 64, "height": 64, "objects": [{"desc": "box", "bbox_2d": [10, 20, 30, 40]}],
    }  # fmt: skip
    write(house.train, *[record] * 4)
    write(house.val, GOOD)
    return int(refused(house, global_max_length=60)[0].what.split()[3])


def growing(to, **more):
    """Augmentation that enlarges an image by these factors."""
    ops = [{"name": "resize_by_scale", "params": {"scales": [to], "prob": 1.0}}]
    return {"augmentation": {"enabled": True, "ops": ops} | more}


def test_what_augmentation_makes_too_long_is_told(house, picture, monkeypatch):
    pytest.importorskip("shapely")
    longer = picture + 16 * 16 - 4
    plan, reporter = look(house, custom=growing(8.0), global_max_length=longer - 1)
    (told,) = reporter.warnings
    assert f"4 of 4 samples of the first epoch longer than the limit of {longer - 1} tokens" in told
    assert f"the longest {longer}" in told
    assert "raise global_max_length" in told
    assert str(house.train) in told
    assert [part.skip for part in plan.data.train] == [()]
    assert look(house, custom=growing(8.0), global_max_length=longer)[1].warnings == []
    monkeypatch.setattr(augmented_lengths, "MOST_LOOKED_AT", 2)
    (told,) = look(house, custom=growing(8.0), global_max_length=longer - 1)[1].warnings
    assert "makes 2 of 2 samples spread over the first epoch" in told
    monkeypatch.setattr(augmented_lengths, "MOST_LOOKED_AT", 20)
    at_once = {"max_steps": 1, "per_device_train_batch_size": 2, "effective_batch_size": 2}
    (told,) = look(house, custom=growing(8.0), global_max_length=longer - 1, training=at_once)[1].warnings
    assert "makes 2 of 2 samples of" in told


def test_no_epoch_is_drawn_where_nothing_can_become_longer(house, picture):
    pytest.importorskip("shapely")
    colour = [{"name": "gamma", "params": {"gamma": [0.8, 1.2], "prob": 1.0}}]
    for custom in ({}, growing(8.0, enabled=False), growing(8.0, ops=colour)):
        _, reporter = look(house, custom=custom, global_max_length=picture)
        assert (reporter.stages, reporter.warnings) == (["reading every record"], [])


def test_nothing_is_read_where_the_recipe_says_so(house):
    write(house.train, BAD)
    (house.base / "tokenizer.json").unlink()
    plan, reporter = look(house, custom={"preflight": False})
    assert plan.data.train[0].skip == ()
    assert reporter.stages == []
    with pytest.raises(InvalidInput, match=r"tokenizer\.json"):
        look(house)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda base: (base / "model.safetensors").unlink(), InvalidInput, "holds no weights"),
        (lambda base: (base / "model.safetensors").write_bytes(b"\x09" * 20), BadContent, "announces a header"),
        (lambda base: (base / "preprocessor_config.json").unlink(), InvalidInput, "holds no preprocessor_config.json"),
        (
            lambda base: (
                (base / "model.safetensors").rename(base / "adapter_model.safetensors")
                and (base / "adapter_config.json").write_text("{}")
            ),
            InvalidInput,
            "is an adapter, not a base",
        ),
    ],
)
def test_a_base_that_lacks_files_is_refused_before_it_is_loaded(spoil, error, words, house):
    write(house.train, GOOD)
    write(house.val, GOOD)
    spoil(house.base)
    with pytest.raises(error, match=words):
        look(house)
    with pytest.raises(error, match=words):
        look(house, custom={"preflight": False})


def test_before_a_merge_the_original_base_is_looked_at(house):
    write(house.train, GOOD)
    earlier = write_adapter(house.folder / "earlier", house.base)
    merging = {"resume_from_checkpoint": str(earlier), "merge_previous": str(house.folder / "merged")}
    rlhf = {"rlhf_type": "gkd", "sft_alpha": 1.0, "lmbda": 0.0, "seq_kd": False}
    for teacher in (None, str(house.folder / "merged")):
        plan, _ = look(house, custom={"val_jsonl": None}, tuner=merging, rlhf=rlhf | {"teacher_model": teacher})
        assert plan.data.train[0].skip == ()
    (house.base / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidInput, match="processor_config"):
        look(house, custom={"val_jsonl": None}, tuner=merging)
