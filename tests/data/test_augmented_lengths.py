"""What is counted of an augmented epoch is what training shows of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("shapely")

import msgspec
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from vltool.data import augmented_lengths as counting
from vltool.data.augment.policy import Augmenter
from vltool.data.augmented_lengths import augmented_lengths
from vltool.data.conversation import Prompts
from vltool.data.dataset import CaptionDataset, Change, Standing
from vltool.data.policy import Policy
from vltool.data.samples import Draw, OneAfterTheOther, Samples
from vltool.data.tokens import TextCounter
from vltool.recipe.schema import Augmentation

RECORDS = 40
MOST_PIXELS = 200 * 200
OPS = (
    {"name": "hflip", "params": {"prob": 0.5}},
    {"name": "rotate", "params": {"max_deg": 25.0, "prob": 0.4}},
    {"name": "expand_to_fit_affine", "params": {}},
    {"name": "resize_by_scale", "params": {"lo": 0.5, "hi": 2.5, "prob": 0.5}},
    {"name": "gamma", "params": {"gamma": [0.8, 1.2], "prob": 0.3}},
)


@pytest.fixture(scope="module")
def counter():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return TextCounter(tokenizer)


@pytest.fixture
def samples(tmp_path):
    """Makes the samples of a run over boxes and polygons on a small picture, and one conversation."""
    Image.fromarray(np.zeros((64, 96, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    rng = np.random.default_rng(3)
    records = [{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}]
    for _ in range(RECORDS - 1):
        boxes = [
            {"desc": "cat", "bbox_2d": [left, top, left + 40, top + 30]} for left, top in rng.integers(0, 30, (3, 2))
        ]
        polygon = {"desc": "sail", "poly": [*rng.integers(0, 30, 2), 60, 5, 50, 40]}
        record = {"images": ["a.png"], "width": 96, "height": 64, "objects": [*boxes, polygon]}
        records.append(json.loads(json.dumps(record, default=int)))
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(*ops, max_objects=2, **policy):
        augmentation = msgspec.convert({"enabled": True, "ops": ops, "bypass_prob": 0.2}, Augmentation)
        dataset = CaptionDataset(
            path,
            prompts=Prompts("describe"),
            emit_norm="norm1000",
            use_summary=False,
            max_pixels=MOST_PIXELS,
            policy=Policy(max_objects=max_objects, **policy),
            augmenter=Augmenter(augmentation, seed=5, samples=3 * RECORDS, samples_a_step=4),
        )
        return Samples([dataset], OneAfterTheOther([len(dataset)], seed=7))

    return make


def lengths_of(samples, counter):
    """Tokens of each sample of the first epoch, augmented and plain, by its pixels."""

    def counted(sample):
        return counter.count(sample.messages, max_pixels=MOST_PIXELS)

    draws = [Draw(0, place) for place in range(len(samples))]
    return [(counted(samples[draw]), counted(samples.plain(draw))) for draw in draws]


def test_what_moves_is_what_training_shows(samples, counter):
    made = samples(*OPS)
    changed = 0
    for place, (augmented, plain) in enumerate(lengths_of(made, counter)):
        moved = made.moved(Draw(0, place))
        sample = made[Draw(0, place)]
        if moved is None:
            assert augmented == plain
            assert sample.messages[-1] == made.plain(Draw(0, place)).messages[-1]
        else:
            messages, where = moved
            assert (messages[-1], where) == (sample.messages[-1], sample.where)
            assert counter.count(messages, max_pixels=MOST_PIXELS) == augmented
            changed += 1
    assert RECORDS // 4 < changed < RECORDS


@pytest.mark.parametrize("at_once", [3, 256])
def test_those_that_became_too_long_are_counted(samples, counter, monkeypatch, at_once):
    monkeypatch.setattr(counting, "COUNTED_AT_ONCE", at_once)
    made = samples(*OPS)
    lengths = lengths_of(made, counter)
    limit = max(plain for _, plain in lengths)
    for shown in (RECORDS, 7):
        long = [augmented for augmented, _ in lengths[:shown] if augmented > limit]
        found = augmented_lengths(made, counter, shown=shown, max_length=limit, max_pixels=MOST_PIXELS)
        assert (found.looked_at, found.too_long) == (shown, len(long))
        assert (found.longest[0] if found.longest else None) == max(long, default=None)
    assert found.too_long < len([1 for augmented, _ in lengths if augmented > limit])
    longest = max(augmented for augmented, _ in lengths)
    assert found.most == max(augmented for augmented, plain in lengths[:7] if augmented != plain)
    found = augmented_lengths(made, counter, shown=RECORDS, max_length=longest, max_pixels=MOST_PIXELS)
    assert (found.too_long, found.longest, found.most) == (0, None, longest)


def test_of_a_long_epoch_so_many_are_looked_at(samples, counter, monkeypatch):
    monkeypatch.setattr(counting, "MOST_LOOKED_AT", 15)
    told = []
    found = augmented_lengths(
        samples(*OPS), counter, shown=RECORDS, max_length=1, max_pixels=None, progress=lambda *done: told.append(done)
    )
    assert found.looked_at == 14
    assert told == [(0, 14)]


def test_what_a_dataset_does_not_augment_is_not_counted(samples, counter):
    made = samples(*OPS, augmentation_enabled=False)
    found = augmented_lengths(made, counter, shown=RECORDS, max_length=1, max_pixels=None)
    assert (found.too_long, found.most) == (0, 0)


def test_colours_alone_move_nothing():
    def moves(*ops):
        augmentation = msgspec.convert({"enabled": True, "ops": ops}, Augmentation)
        return Augmenter(augmentation, seed=0, samples=1, samples_a_step=1).moves

    assert not moves(OPS[-1])
    assert moves(OPS[-1], OPS[0])


@pytest.mark.parametrize(("factor", "reverted"), [(1.0, False), (1.3, True)])
def test_a_draw_that_makes_an_image_too_thin_leaves_its_sample_as_it_is(tmp_path, factor, reverted):
    Image.new("RGB", (195, 1)).save(tmp_path / "a.png")
    record = {"images": ["a.png"], "width": 195, "height": 1, "objects": [{"desc": "rope", "line": [0, 0, 90, 1]}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(record) + "\n")
    resize = {"name": "resize_by_scale", "params": {"scales": [factor], "prob": 1.0, "align_multiple": None}}
    augmentation = msgspec.convert({"enabled": True, "ops": [resize, OPS[0]]}, Augmentation)
    dataset = CaptionDataset(
        tmp_path / "t.jsonl",
        prompts=Prompts("describe"),
        emit_norm="norm1000",
        use_summary=False,
        max_pixels=None,
        augmenter=Augmenter(augmentation, seed=0, samples=9, samples_a_step=1),
    )
    standing = Standing(0, 0, 0)
    sample = dataset.sample(0, standing)
    assert sample.change == Change(("line",), reverted=reverted)
    if reverted:
        assert sample.messages == dataset[0].messages
        assert dataset.moved(0, standing) is None
