"""Tokens: the sizes and counts of the training stack, without it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from vltool.data.tokens import TEXTS_AT_ONCE, Learnt, TextCounter, image_tokens, render, seen_size
from vltool.errors import BadContent, InvalidInput

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]


def _reference(width: int, height: int, max_pixels: int | None) -> tuple[int, int] | None:
    """The real chain on a real image; None where it refuses."""
    torchvision = pytest.importorskip("torchvision")
    process = pytest.importorskip("qwen_vl_utils.vision_process")
    if max_pixels is not None and width * height > max_pixels:
        # ms-swift's rescale_image, whose module needs the whole of ms-swift
        ratio = width / height
        scaled = (max_pixels / ratio) ** 0.5
        image = torchvision.transforms.Resize((int(scaled), int(scaled * ratio)))(Image.new("1", (width, height)))
        width, height = image.size
    try:
        seen_height, seen_width = process.smart_resize(height, width, factor=32)
    except ValueError:
        return None
    return seen_width, seen_height


def test_seen_size_is_that_of_the_training_stack() -> None:
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        width, height = (round(2 ** draw.uniform(0, 13)) for _ in range(2))
        max_pixels = draw.choice([None, 1 << 14, 602_112, 1 << 24])
        expected = _reference(width, height, max_pixels)
        if expected is None:
            refused += 1
            with pytest.raises(BadContent, match="200 times"):
                seen_size(width, height, max_pixels=max_pixels)
        else:
            assert seen_size(width, height, max_pixels=max_pixels) == expected, (width, height, max_pixels)
    assert 0 < refused < 100


@pytest.mark.parametrize(
    ("size", "max_pixels", "expected"),
    [
        ((512, 512), None, (512, 512)),
        ((1, 1), None, (64, 64)),
        ((451, 300), None, (448, 288)),
        ((48, 48), None, (64, 64)),
        ((80, 80), None, (64, 64)),  # 2.5 steps: a half goes to the even neighbour
        ((20_000, 20_000), None, (4096, 4096)),
        ((1000, 1000), 250_000, (512, 512)),  # 500 is nearer to 512: max_pixels bounds the image before rounding
        ((1000, 1000), 0, (992, 992)),
        ((6400, 32), None, (6400, 32)),  # 200 times as wide as high is the most
    ],
)
def test_sizes(size: tuple[int, int], max_pixels: int | None, expected: tuple[int, int]) -> None:
    assert seen_size(*size, max_pixels=max_pixels) == expected
    assert image_tokens(*size, max_pixels=max_pixels) == expected[0] * expected[1] // 1024


@given(st.integers(1, 30_000), st.integers(1, 30_000), st.none() | st.integers(1, 10**7))
def test_every_size_is_seen_in_whole_tokens_or_refused(width: int, height: int, max_pixels: int | None) -> None:
    try:
        seen = seen_size(width, height, max_pixels=max_pixels)
    except BadContent:
        assert max(width, height) > 100 * min(width, height) or (max_pixels or 1000) < 1000
        return
    assert seen[0] % 32 == seen[1] % 32 == 0
    assert 4 <= image_tokens(width, height, max_pixels=max_pixels) <= 16384


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder whose tokenizer gives each byte a token, apart from the special texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)} | {"ĊĊ": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def _says(*texts: Any, system: str | None = None) -> list[dict[str, Any]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def test_a_row_is_rendered_as_the_template_does() -> None:
    pictured = [{"type": "image", "image": (64, 64)}, {"type": "text", "text": "what?"}]
    assert render(_says(pictured, "a", "more", "b", system="s")) == [
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "a",
        "<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n",
        "b<|im_end|>\n",
    ]
    assert render(_says("", "a", system="")) == [
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>\n",
    ]  # fmt: skip


def test_a_short_row_by_hand(folder: Path) -> None:
    counter = TextCounter.from_folder(folder)
    # <|im_start|> user \n  h i  <|im_end|> \n  <|im_start|> assistant \n  y e s  <|im_end|> \n
    assert counter.count(_says("hi", "yes")) == 1 + 5 + 2 + 2 + 1 + 10 + 3 + 2


def test_an_answer_is_tokenized_apart_from_its_prompt(folder: Path) -> None:
    """Else a newline at its start would melt into the one before it."""
    counter = TextCounter.from_folder(folder)
    assert counter.count(_says("hi", "\nyes")) == counter.count(_says("hi", "yes")) + 1


@pytest.mark.parametrize("image", [(640, 480), Image.new("RGB", (640, 480))], ids=["size", "pixels"])
def test_an_image_costs_what_is_seen_of_it(folder: Path, image: Any) -> None:
    counter = TextCounter.from_folder(folder)
    text = {"type": "text", "text": "hi"}
    pictured = _says([{"type": "image", "image": image}, text], "yes")
    plain = counter.count(_says([text], "yes"))
    assert counter.count(pictured) == plain + 2 + 20 * 15
    assert counter.count(pictured, max_pixels=640 * 120) == plain + 2 + image_tokens(640, 480, max_pixels=640 * 120)


def test_many_are_counted_as_each_alone(folder: Path) -> None:
    counter = TextCounter.from_folder(folder)
    picture = {"type": "image", "image": (640, 480)}
    rows = [_says([picture] * (n % 3) + [{"type": "text", "text": "hi"}], "y" * n, system="s") for n in range(200)]
    rows += [_says("a", "b", "a", "b"), _says("a", "b<|im_end|>\n")]  # a text may stand twice, in a row and in two
    assert len({text for row in rows for text in render(row)}) > 3 * TEXTS_AT_ONCE
    for limit in (None, 640 * 120):
        counted = counter.count_many(rows, max_pixels=limit)
        assert counted == [counter.count(row, max_pixels=limit) for row in rows]
    assert counter.count_many([]) == []
    assert counted[1] == counted[0] + 1 + 2 + image_tokens(640, 480, max_pixels=640 * 120)
    with pytest.raises(BadContent, match="200 times"):
        counter.count_many([*rows, _says([{"type": "image", "image": (1, 999)}], "yes")])


TALK = st.lists(st.text(st.characters(exclude_characters="<|>", exclude_categories=["Cs"])), min_size=2, max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(TALK, st.booleans(), st.sampled_from(["default", "last_round", "all"]))
def test_pieces_join_to_the_row_and_add_up_to_its_count(
    folder: Path, texts: list[str], pictured: bool, learnt: Learnt
) -> None:
    counter = TextCounter.from_folder(folder)
    texts = texts[: len(texts) // 2 * 2]
    items = [{"type": "image", "image": (200, 100)}] if pictured else []
    messages = _says([*items, {"type": "text", "text": texts[0]}], *texts[1:], system="s")
    pieces = counter.pieces(messages, learnt=learnt)
    assert "".join(piece.text for piece in pieces) == "".join(render(messages))
    assert sum(piece.tokens for piece in pieces) == counter.count(messages)
    assert [piece.tokens for piece in pieces if piece.image] == [image_tokens(200, 100, max_pixels=None)] * pictured
    measured = counter.measure_many([messages, messages[:3]], learnt=learnt)[0]
    assert (measured.tokens, measured.supervised) == (
        sum(piece.tokens for piece in pieces), sum(piece.tokens for piece in pieces if piece.supervised),
    )  # fmt: skip
    if "\n" not in texts[-1]:
        assert measured.answer == len(texts[-1].encode()) + 1
    supervised = "".join(piece.text for piece in pieces if piece.supervised)
    answers = {"default": texts[1::2], "last_round": texts[-1:], "all": []}[learnt]
    if learnt == "all":
        framed = "<|vision_start|><|image_pad|><|vision_end|>" if pictured else ""
        assert supervised == "".join(render(messages)).replace(framed, "").removeprefix("<|im_start|>")
    else:
        assert supervised == "".join(f"{answer}<|im_end|>\n" for answer in answers)


def test_a_folder_without_a_good_tokenizer_is_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"tokenizer\.json"):
        TextCounter.from_folder(tmp_path)
    for data, words in {b"{}": "no tokenizer", b"{": "no tokenizer", b"\xff": "not UTF-8"}.items():
        (tmp_path / "tokenizer.json").write_bytes(data)
        with pytest.raises(InvalidInput, match=words):
            TextCounter.from_folder(tmp_path)
