"""The dataset and its scan: one verdict, one wording, before training and in it."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

import vltool.data
from vltool.data import scan as scanning
from vltool.data import sizes
from vltool.data.conversation import Prompts
from vltool.data.dataset import CaptionDataset, Change, Sample, Standing
from vltool.data.images import image_size
from vltool.data.scan import Scan, scan
from vltool.data.tokens import TextCounter
from vltool.errors import BadContent, InvalidInput
from vltool.recipe.schema import Augmentation

DEMO = Path(vltool.data.__file__).parent / "demo" / "photos.jsonl"
HOW: dict[str, Any] = {
    "prompts": Prompts("describe", "be exact"), "emit_norm": "norm1000", "use_summary": False, "max_pixels": None,
}  # fmt: skip


def _caption(**changes: Any) -> dict[str, Any]:
    box = {"desc": "cat", "bbox_2d": [1, 2, 30, 20]}
    return {"images": ["a.jpg"], "width": 64, "height": 32, "objects": [box], "summary": "a cat", **changes}


def _jsonl(folder: Path, *records: Any) -> Path:
    Image.new("RGB", (64, 32), "red").save(folder / "a.jpg")
    path = folder / "train.jsonl"
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records), encoding="utf-8")
    return path


def _scan(jsonl: Path, **changes: Any) -> Scan:
    return scan(jsonl, **{**HOW, "counter": None, "max_length": 4096, "check_images": True, **changes})


@pytest.fixture
def counter() -> TextCounter:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return TextCounter(tokenizer)


def test_the_demo_photographs_are_good_records() -> None:
    result = _scan(DEMO)
    assert (result.records, result.problems, result.bad) == (6, (), ())
    samples = CaptionDataset(DEMO, **HOW)
    assert len(samples) == 6
    for i in range(6):
        image = samples[i].messages[1]["content"][0]["image"]
        line = json.loads(DEMO.read_text(encoding="utf-8").splitlines()[i])
        assert (image.mode, image.size) == ("RGB", (line["width"], line["height"]))
        assert len(json.loads(samples[i].messages[2]["content"])) == len(line["objects"])
    assert (DEMO.parent / "README.md").is_file()


def test_a_sample_holds_messages_pixels_and_its_line(tmp_path: Path) -> None:
    sample = CaptionDataset(_jsonl(tmp_path, "", _caption()), **HOW)[0]
    assert sample.where.line == 2
    system, user, answer = sample.messages
    assert system == {"role": "system", "content": "be exact"}
    assert user["content"][1] == {"type": "text", "text": "describe"}
    assert np.asarray(user["content"][0]["image"]).shape == (32, 64, 3)
    assert answer["content"] == '{"object_1": {"desc": "cat", "bbox_2d": [16, 62, 469, 625]}}'


def test_pixels_of_the_seen_image_follow_max_pixels(tmp_path: Path) -> None:
    jsonl = _jsonl(tmp_path, _caption(width=512, height=256))
    Image.new("RGB", (512, 256)).save(tmp_path / "a.jpg")
    answer = CaptionDataset(jsonl, **{**HOW, "emit_norm": "none", "max_pixels": 128 * 64})[0].messages[-1]["content"]
    assert json.loads(answer)["object_1"]["bbox_2d"] == [0, 0, 8, 5]


def test_limits_and_skips(tmp_path: Path) -> None:
    jsonl = _jsonl(tmp_path, *[_caption(objects=[{"desc": str(n), "bbox_2d": [1, 2, 3, 4]}]) for n in range(6)])

    def names(**changes: Any) -> list[str]:
        samples = CaptionDataset(jsonl, **HOW, **changes)
        with pytest.raises(IndexError):
            samples[len(samples)]
        answers = (json.loads(samples[i].messages[-1]["content"]) for i in range(len(samples)))
        return [answer["object_1"]["desc"] for answer in answers]

    assert names() == list("012345")
    assert names(sample_limit=4) == list("0123")
    assert names(sample_limit=99) == list("012345")
    assert names(sample_limit=4, skip={0, 2, 5}) == list("13")
    with pytest.raises(BadContent, match="every record is skipped"):
        names(skip=range(6))
    assert _scan(jsonl, sample_limit=4).records == 4


def test_an_absent_file_is_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        CaptionDataset(tmp_path / "gone.jsonl", **HOW)
    with pytest.raises(InvalidInput):
        _scan(tmp_path / "gone.jsonl")


TALK = [{"role": "user", "content": "hi " * 40}, {"role": "assistant", "content": "yes"}]
BAD: list[tuple[Any, str]] = [
    ("{", "not valid JSON"),
    (_caption(width=0), "width is 0"),
    (_caption(images=["gone.jpg"]), "gone.jpg does not exist"),
    (_caption(images=["turned.jpg"]), r"declares 64 × 32, its image is 32 × 64: .*EXIF orientation \(6\)"),
    (_caption(width=32, height=64, objects=[{"desc": "x", "bbox_2d": [1, 2, 3, 4]}]), "are swapped"),
    (_caption(width=100), "declares 100 × 32, its image is 64 × 32"),
    (_caption(objects=[]), "no objects to describe"),
    (_caption(images=["broken.jpg"]), "not an image"),
    ({"messages": TALK, "images": ["a.jpg", "thin.png"]}, "200 times"),
    (_caption(images=["thin.png"], width=1, height=300, objects=[{"desc": "x", "bbox_2d": [0, 0, 1, 1]}]), "200 times"),
]


@pytest.mark.parametrize(("record", "words"), BAD, ids=[f"{i}-{words}" for i, (_, words) in enumerate(BAD)])
def test_scan_and_training_say_the_same(tmp_path: Path, record: Any, words: str) -> None:
    jsonl = _jsonl(tmp_path, _caption(), record, _caption())
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (1, 300)).save(tmp_path / "thin.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "turned.jpg", exif=exif)
    samples = CaptionDataset(jsonl, **HOW)
    with pytest.raises(BadContent, match=f"(?s)train.jsonl:2: .*{words}") as caught:
        samples[1]
    result = _scan(jsonl)
    assert result.problems == caught.value.problems
    assert (result.bad, result.too_long, result.problem_count, result.records) == ((1,), (), 1, 3)
    assert isinstance(CaptionDataset(jsonl, **HOW, skip=result.bad)[1], Sample)


def test_a_summary_run_needs_summaries(tmp_path: Path) -> None:
    jsonl = _jsonl(tmp_path, _caption(), _caption(summary=None), {"summary": "text alone"})
    result = _scan(jsonl, use_summary=True)
    assert result.bad == (1,)
    assert "no summary" in str(result.problems[0])
    assert CaptionDataset(jsonl, **{**HOW, "use_summary": True})[2].messages[1:] == [
        {"role": "user", "content": [{"type": "text", "text": "describe"}]},
        {"role": "assistant", "content": "text alone"},
    ]


def test_every_missing_image_of_a_record_is_named(tmp_path: Path) -> None:
    jsonl = _jsonl(tmp_path, {"summary": "x", "images": ["b.jpg", "a.jpg", "c.jpg"]})
    for check_images in (True, False):
        result = _scan(jsonl, use_summary=True, check_images=check_images)
        assert ["b.jpg" in str(result.problems[0]), "c.jpg" in str(result.problems[1])] == [True, True]
        assert (result.problem_count, result.bad) == (2, (0,))


def test_root_is_where_relative_paths_start(tmp_path: Path) -> None:
    jsonl = _jsonl(tmp_path, _caption(images=["sub/b.jpg"]))
    (tmp_path / "root" / "sub").mkdir(parents=True)
    Image.new("RGB", (64, 32)).save(tmp_path / "root" / "sub" / "b.jpg")
    assert _scan(jsonl).bad == (0,)
    assert _scan(jsonl, root=tmp_path / "root").bad == ()
    assert len(CaptionDataset(jsonl, **HOW, root=tmp_path / "root")[0].messages) == 3


def test_lengths_are_those_of_the_samples(tmp_path: Path, counter: TextCounter) -> None:
    jsonl = _jsonl(tmp_path, _caption(), {"messages": TALK}, {"messages": TALK, "images": ["a.jpg", "a.jpg"]})
    samples = CaptionDataset(jsonl, **HOW)
    lengths = [counter.count(samples[i].messages) for i in range(3)]
    for check_images in (True, False):
        result = _scan(jsonl, counter=counter, check_images=check_images, max_length=max(lengths) - 1)
        assert result.longest is not None
        assert (result.longest[0], result.longest[1].line) == (max(lengths), lengths.index(max(lengths)) + 1)
        assert result.too_long == result.bad == (lengths.index(max(lengths)),)
        assert f"{max(lengths)} tokens long, over the limit of {max(lengths) - 1}" in str(result.problems[0])
        assert _scan(jsonl, counter=counter, check_images=check_images, max_length=max(lengths)).bad == ()


@pytest.mark.parametrize("learnt", ["default", "last_round", "all"])
def test_what_is_learnt_and_answered_is_counted(tmp_path: Path, counter: TextCounter, learnt: Any) -> None:
    long = [{"desc": "cat " * 90, "bbox_2d": [1, 2, 30, 20]}]
    jsonl = _jsonl(tmp_path, _caption(), "{", _caption(objects=long), {"messages": TALK * 2, "images": ["a.jpg"]})
    samples = CaptionDataset(jsonl, **HOW, skip=[1])
    messages = [samples[i].messages for i in range(3)]
    result = _scan(jsonl, counter=counter, learnt=learnt, max_length=500)
    measured = counter.measure_many(messages, learnt=learnt)
    assert result.supervised == sum(one.supervised for one in measured)
    assert dict(result.lengths.counts) == {one.tokens: 1 for one in measured}
    assert dict(result.answers.counts) == {one.answer: 1 for one in measured}
    assert result.mean_tokens == sum(one.tokens for one in measured) / 3
    assert result.longest_answer is not None
    assert (result.longest_answer[0], result.longest_answer[1].line) == (measured[1].answer, 3)
    assert measured[2].answer == len("yes<|im_end|>")


@pytest.mark.parametrize("check_images", [True, False])
def test_readable_records_are_told_in_order_whatever_their_length(
    tmp_path: Path, counter: TextCounter, check_images: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "COUNTED_AT_ONCE", 2)
    monkeypatch.setattr(scanning, "READ_AT_ONCE", 4)
    records = [_caption(), _caption(images=["gone.jpg"]), "{", *[_caption(summary=str(n)) for n in range(6)]]
    told: list[tuple[int, str | None, str]] = []
    result = _scan(
        _jsonl(tmp_path, *records),
        counter=counter,
        max_length=1,
        check_images=check_images,
        each=lambda at, record, messages: told.append((at, record.summary, messages[-1]["content"][:10])),
    )
    assert [at for at, *_ in told] == [0, *range(3, 9)] == list(result.too_long)
    assert [summary for _, summary, _ in told] == ["a cat", *"012345"]
    assert {answer for *_, answer in told} == {'{"object_1'}


@pytest.mark.parametrize("most", [2, 1000])
@pytest.mark.parametrize("at_once", [2, 3, 256])
def test_records_counted_together_come_to_what_each_comes_to_alone(
    at_once: int, most: int, tmp_path: Path, counter: TextCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "MOST_PROBLEMS", most)
    long = [{"desc": "cat " * words, "bbox_2d": [1, 2, 30, 20]} for words in (90, 80, 90)]
    good, bad = _caption(), _caption(width=0, height=0, summary=" ")
    thin = _caption(width=6000, height=2)
    records = [good, _caption(objects=long[:1]), bad, "{", _caption(objects=long[1:]), good, thin, {"messages": TALK}]
    jsonl = _jsonl(tmp_path, *records, _caption(objects=long[:1]), bad, good)
    told: list[tuple[int, int]] = []
    how: dict[str, Any] = {"counter": counter, "max_length": 300, "check_images": False}
    monkeypatch.setattr(scanning, "COUNTED_AT_ONCE", 1)
    alone = _scan(jsonl, **how)
    monkeypatch.setattr(scanning, "COUNTED_AT_ONCE", at_once)
    assert _scan(jsonl, **how, progress=lambda *done: told.append(done)) == alone
    assert (alone.bad, alone.too_long) == ((1, 2, 3, 4, 6, 8, 9), (1, 4, 8))
    assert alone.longest is not None
    assert alone.longest[1].line == 5
    assert len(alone.problems) == min(most, alone.problem_count)
    assert told == [(0, 11)]


def test_declared_sizes_spare_the_headers(
    tmp_path: Path, counter: TextCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "image_header", lambda *_, **__: pytest.fail("read a header"))
    jsonl = _jsonl(tmp_path, _caption())
    assert _scan(jsonl, counter=counter, check_images=False).bad == ()


def test_problems_are_kept_up_to_a_limit_and_counted_beyond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "MOST_PROBLEMS", 3)
    result = _scan(_jsonl(tmp_path, *[_caption(width=0, height=0)] * 5))
    assert (len(result.problems), result.problem_count, result.bad) == (3, 10, (0, 1, 2, 3, 4))


def _answers(samples: CaptionDataset) -> list[str]:
    return [samples[i].messages[-1]["content"] for i in range(len(samples))]


def test_forked_workers_see_the_same_samples() -> None:
    samples = CaptionDataset(DEMO, **HOW)
    expected = _answers(samples)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_answers, [samples] * 2) == [expected] * 2


def test_headers_and_pixels_of_the_demo_agree() -> None:
    for path in sorted((DEMO.parent / "images").iterdir()):
        with Image.open(path) as image:
            assert image_size(path.name, folder=path.parent, root=None) == image.size


def test_a_draw_that_the_model_could_not_see_leaves_the_sample_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("shapely")
    policy = pytest.importorskip("vltool.data.augment.policy")
    jsonl = _jsonl(tmp_path, _caption(width=7000, height=40))
    Image.new("RGB", (7000, 40)).save(tmp_path / "a.jpg")
    # The nearest multiples of 32 are 7008 and 32, a ratio over 200.
    resize = {"name": "resize_by_scale", "params": {"prob": 1.0, "lo": 1.0, "hi": 1.0}}
    augmentation = msgspec.convert({"enabled": True, "ops": [resize]}, Augmentation)
    augmenter = policy.Augmenter(augmentation, seed=0, samples=1, samples_a_step=1)
    samples = CaptionDataset(jsonl, **HOW, augmenter=augmenter)
    sample = samples.sample(0, Standing(0, 0, 0))
    assert sample.change == Change(("bbox_2d",), reverted=True)
    assert sample.messages[1]["content"][0]["image"].size == (7000, 40)
    assert sample.messages[-1] == samples[0].messages[-1]
