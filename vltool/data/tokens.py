"""What the model will see of an image, and how many tokens a conversation costs; from sizes, not pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer

from vltool.errors import BadContent, InvalidInput, Problem

FEWEST_IMAGE_TOKENS = 4
MOST_IMAGE_TOKENS = 16384
LARGEST_RATIO = 200
"""Long side over short side; qwen_vl_utils refuses more.

Source of the three: IMAGE_MIN_TOKEN_NUM, IMAGE_MAX_TOKEN_NUM, MAX_RATIO in qwen_vl_utils 0.0.14's vision_process.py.
"""
TEXTS_AT_ONCE = 32
"""Texts that one thread tokenizes before it takes the next ones."""

IMAGE_PAD = "<|image_pad|>"
END = "<|im_end|>\n"
IMAGE_FRAME = ("<|vision_start|>", "<|vision_end|>")


def seen_size(
    width: int, height: int, *, patch_size: int = 16, merge_size: int = 2, max_pixels: int | None
) -> tuple[int, int]:
    """(width, height) in pixels of an image as it enters the vision tower.

    width, height: of the oriented image. max_pixels: `template.max_pixels`; None or 0 for no limit.
    Raises BadContent, without a place, for an image that is too long and thin.
    Source: `rescale_image` in ms-swift 4.6's swift/template/vision_utils.py, then `smart_resize` in
    qwen_vl_utils 0.0.14, as `fetch_image` calls it; round() takes halves to even there as here.
    """
    width, height = _rescaled(width, height, max_pixels)
    if min(width, height) < 1 or max(width, height) / min(width, height) > LARGEST_RATIO:
        raise BadContent(
            f"the image is seen as {width} × {height}: one side is over {LARGEST_RATIO} times the other",
            "crop it, or drop the record; Qwen3-VL's preprocessing refuses it",
        )
    factor = patch_size * merge_size
    fewest, most = FEWEST_IMAGE_TOKENS * factor**2, MOST_IMAGE_TOKENS * factor**2
    seen_height, seen_width = (max(factor, round(side / factor) * factor) for side in (height, width))
    if seen_height * seen_width > most:
        shrink = math.sqrt(height * width / most)
        seen_height, seen_width = (math.floor(side / shrink / factor) * factor for side in (height, width))
    elif seen_height * seen_width < fewest:
        grow = math.sqrt(fewest / (height * width))
        seen_height, seen_width = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return seen_width, seen_height


def _rescaled(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    if not max_pixels or max_pixels < 0 or width * height <= max_pixels:
        return width, height
    ratio = width / height
    scaled_height = math.sqrt(max_pixels / ratio)
    return int(scaled_height * ratio), int(scaled_height)


def image_tokens(width: int, height: int, *, patch_size: int = 16, merge_size: int = 2, max_pixels: int | None) -> int:
    """Tokens of an image in the language model; arguments and errors as for `seen_size`."""
    size = seen_size(width, height, patch_size=patch_size, merge_size=merge_size, max_pixels=max_pixels)
    return math.prod(size) // (patch_size * merge_size) ** 2


Learnt = Literal["default", "last_round", "all"]
"""What of a row is learnt, by ms-swift's `loss_scale`: every answer, the last one, or all of its text."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a training row's text that is one token, or several that share a character."""

    text: str
    tokens: int
    supervised: bool
    """Whether these tokens are labels."""
    image: bool = False
    """Whether this is an image's placeholder, of which the row has `tokens`."""


class Measure(NamedTuple):
    """Tokens of a training row."""

    tokens: int
    supervised: int
    """Those that are labels."""
    answer: int
    """Those of the last answer with the `<|im_end|>` that a model has to write behind it."""


class TextCounter:
    """Counts the tokens of a training row exactly as ms-swift's qwen3_vl template makes them.

    Source: `Template._swift_encode` and `Qwen3VLTemplate` of ms-swift 4.6: ChatML without a default
    system message, `\\n` after the last `<|im_end|>`; an answer with its end is tokenized apart from
    the prompt before it, since only the answer is learnt.
    """

    def __init__(self, tokenizer: Tokenizer, *, patch_size: int = 16, merge_size: int = 2) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._patch_size, self._merge_size = tokenizer, patch_size, merge_size

    @classmethod
    def from_folder(cls, folder: Path) -> TextCounter:
        """The counter for a checkpoint's tokenizer.json; InvalidInput if that is absent or damaged."""
        path = folder / "tokenizer.json"
        try:
            text = path.read_bytes().decode()
        except OSError as error:
            what = f"cannot read {path}: {error.strerror}"
            raise InvalidInput(Problem(what, "name a complete checkpoint folder", id="base-path")) from error
        except UnicodeDecodeError as error:
            what = f"{path} is not UTF-8 text"
            raise InvalidInput(Problem(what, "copy the tokenizer again", id="base-path")) from error
        try:
            return cls(Tokenizer.from_str(text))
        except Exception as error:  # tokenizers raises nothing narrower
            what = f"{path} is no tokenizer: {error}"
            raise InvalidInput(Problem(what, "copy the tokenizer again", id="base-path")) from error

    def count(self, messages: list[dict[str, Any]], *, max_pixels: int | None = None) -> int:
        """Tokens of a conversation that ends with an answer.

        messages: as `build_messages` makes them, with images as pixels (anything with a `.size`) or
        as their oriented (width, height). Raises BadContent, without a place, as `seen_size` does.
        """
        return self.count_many([messages], max_pixels=max_pixels)[0]

    def count_many(self, conversations: Sequence[list[dict[str, Any]]], *, max_pixels: int | None = None) -> list[int]:
        """`count` of each of many conversations: on every core, and what they have in common only once.

        Raises as `count` does, for the first that is wrong.
        """
        return [measure.tokens for measure in self.measure_many(conversations, max_pixels=max_pixels)]

    def measure_many(
        self,
        conversations: Sequence[list[dict[str, Any]]],
        *,
        max_pixels: int | None = None,
        learnt: Learnt = "default",
    ) -> list[Measure]:
        """As `count_many`, with what of each is learnt, which is what `pieces` has as supervised."""
        segments = [render(messages) for messages in conversations]
        ends = ("<|im_end|>", END)
        lengths = self._lengths(list(dict.fromkeys(chain(ends, *segments))))
        stop, end = (lengths[text] for text in ends)
        measures = []
        for row, messages in zip(segments, conversations, strict=True):
            text, pictures = sum(lengths[text] for text in row), _images(messages)
            seen = sum(self._image_tokens(image, max_pixels) for image in pictures)
            answer = lengths[row[-1]]
            supervised = answer
            if learnt == "all":
                # Neither images in their frames nor the token that nothing stands before.
                supervised = text - 3 * len(pictures) - 1
            elif learnt == "default":
                supervised += sum(lengths[earlier] + end for earlier in row[1:-1:2])
            measures.append(Measure(text + seen - len(pictures), supervised, answer - end + stop))
        return measures

    def _lengths(self, texts: list[str]) -> dict[str, int]:
        """Tokens of each text. Threads, since `encode_batch_fast` leaves Python's lock alone; its own are off by
        default in training, where TOKENIZERS_PARALLELISM is false."""
        batches = [texts[i : i + TEXTS_AT_ONCE] for i in range(0, len(texts), TEXTS_AT_ONCE)]
        if len(batches) <= 1:
            counted = list(map(self._count_texts, batches))
        else:
            with ThreadPoolExecutor(min(len(batches), len(os.sched_getaffinity(0)))) as threads:
                counted = list(threads.map(self._count_texts, batches))
        return dict(zip(texts, chain.from_iterable(counted), strict=True))

    def _count_texts(self, texts: list[str]) -> list[int]:
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def pieces(
        self, messages: list[dict[str, Any]], *, max_pixels: int | None = None, learnt: Learnt = "default"
    ) -> list[Piece]:
        """A conversation token by token: the texts join to the row of `render`, the tokens add up to `count`.

        Arguments and errors as for `count`. The end of an answer is learnt with it.
        Source: `LossScale._inner_call`, and `Template._swift_encode` with what it calls, of ms-swift 4.6.
        """
        found: list[Piece] = []
        segments = render(messages)
        images = iter(_images(messages))
        for number, text in enumerate(segments):
            answer = number % 2 == 1 and (learnt == "default" or number == len(segments) - 1)
            # The end of an earlier answer begins the next segment.
            end = len(END) if number and number % 2 == 0 and learnt == "default" else 0
            at = 0
            for piece, tokens in self._cut(text):
                if piece == IMAGE_PAD:
                    found.append(Piece(piece, self._image_tokens(next(images), max_pixels), False, image=True))
                else:
                    # Neither an image's frame nor what nothing stands before is ever a label.
                    everything = learnt == "all" and bool(found) and piece not in IMAGE_FRAME
                    found.append(Piece(piece, tokens, answer or at < end or everything))
                at += len(piece)
        return found

    def _cut(self, text: str) -> list[tuple[str, int]]:
        """A text's tokens as stretches of it; those that begin inside a character go with the one before."""
        cuts: list[tuple[int, int]] = []
        for start, end in self._tokenizer.encode(text, add_special_tokens=False).offsets:
            before, tokens = cuts[-1] if cuts else (0, 0)
            if cuts and start < before:
                cuts[-1] = max(before, end), tokens + 1
            else:
                cuts.append((end, 1))
        starts = [0, *(end for end, _ in cuts)]
        return [(text[start:end], tokens) for start, (end, tokens) in zip(starts, cuts, strict=False)]

    def _image_tokens(self, image: Any, max_pixels: int | None) -> int:
        width, height = getattr(image, "size", image)
        return image_tokens(
            width, height, patch_size=self._patch_size, merge_size=self._merge_size, max_pixels=max_pixels
        )


def _images(messages: list[dict[str, Any]]) -> list[Any]:
    lists = (message["content"] for message in messages if isinstance(message["content"], list))
    return [item["image"] for content in lists for item in content if item["type"] == "image"]


def render(messages: list[dict[str, Any]]) -> list[str]:
    """The text of a training row in the pieces in which it is tokenized, an image as one `<|image_pad|>`."""
    segments = [""]
    for message in messages:
        content = message["content"]
        if isinstance(content, list):
            content = "".join(
                "".join((IMAGE_FRAME[0], IMAGE_PAD, IMAGE_FRAME[1])) if item["type"] == "image" else item["text"]
                for item in content
            )
        if message["role"] == "assistant":
            segments[-1] += "<|im_start|>assistant\n"
            segments += [content, "<|im_end|>\n"]
        elif content or message["role"] == "user":
            segments[-1] += f"<|im_start|>{message['role']}\n{content}<|im_end|>\n"
    return _joined(segments)


def _joined(segments: list[str]) -> list[str]:
    """The last answer goes with its end, which is learnt too; the ends of earlier ones go with what follows."""
    return [*segments[:-2], segments[-2] + segments[-1]]
