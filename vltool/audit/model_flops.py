"""What a training step has to compute, by the definition of MFU that budgets, telemetry and benchmarks share.

Language weights forward and input gradient, 2NT each, 2NT more for the gradient of weights that train (so that
LoRA's own count 6NT); causal attention once forward and twice backward; the head at label positions; vision
forward, and backward where it trains; under distillation the teacher's forward. No recomputation, no padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vltool.audit.anatomy import Anatomy
from vltool.audit.towers import Text, Vision
from vltool.audit.weights import Weight

PEAK_FLOPS = 989e12
"""Dense bf16 of an H100 or H200 by its data sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one process reads at once; all numbers but the first are of a row."""

    rows: int
    tokens: int
    labels: int
    """Tokens that the loss sees."""
    patches: int
    """Of its images, before they are merged."""
    images: int = 1
    padded: bool = False
    """Whether rows differ in length."""


def step_flops(anatomy: Anatomy, batch: Batch, *, teacher: bool, teacher_sees: bool = False) -> float:
    """Model FLOPs of a forward and backward pass over a batch.

    teacher: whether a teacher's language tower of the same shape runs on it. teacher_sees: whether its vision tower
    does too, having nothing in common with the student's.
    """
    text = anatomy.text
    tokens, labels = batch.rows * batch.tokens, batch.rows * batch.labels
    linears = text.layers * _layer(text)
    # Two products of [S, S], half of it masked.
    attention = text.layers * batch.rows * 2 * batch.tokens**2 * text.query
    head = 2 * labels * text.hidden * text.vocab
    forward = 2 * linears * tokens + attention + head
    backward = 0.0
    if anatomy.first_trained_layer is not None:
        share = (text.layers - anatomy.first_trained_layer) / text.layers
        backward = share * (2 * linears * tokens + 2 * attention)
        backward += 2 * tokens * _own(text, anatomy) + 6 * tokens * _adapters(_of_layers(anatomy))
    backward += head * (2 if anatomy.head_trained else 1)
    seen = _vision_forward(anatomy.vision, batch)
    again = (forward if teacher else 0.0) + (seen if teacher and teacher_sees else 0.0)
    return forward + backward + seen + _vision_backward(anatomy, batch) + again


def loss_flops(positions: int, vocabulary: int, hidden: int) -> float:
    """The three matrix products of a distillation loss: teacher logits, student logits, hidden gradient."""
    return 3 * 2.0 * positions * vocabulary * hidden


def _layer(text: Text) -> int:
    """Weights of a decoder layer's matrices that one token goes through."""
    attention = 2 * text.hidden * (text.query + text.key)
    return attention + 3 * text.hidden * text.inner


def _of_layers(anatomy: Anatomy) -> list[Weight]:
    return [weight for layer in anatomy.layers for weight in layer.values()]


def _own(text: Text, anatomy: Anatomy) -> float:
    """Weights of the decoder layers that train themselves, as far as one token goes through them."""
    trained = sum(any(w.trained or w.copied for w in layer.values()) for layer in anatomy.layers)
    if not trained:
        return 0.0
    if text.experts_a_token:
        return trained * _layer(text)
    return sum(w.size for w in _of_layers(anatomy) if w.linear and (w.trained or w.copied))


def _adapters(weights: Iterable[Weight]) -> int:
    return sum(weight.adapter_size for weight in weights)


def _block(vision: Vision) -> int:
    return 4 * vision.hidden**2 + 2 * vision.hidden * vision.inner


def _merging(vision: Vision) -> int:
    """Weights of the merger and the deepstack mergers."""
    wide = vision.merged_hidden
    return (1 + len(vision.deepstack)) * (wide**2 + wide * vision.out)


def _vision_attention(vision: Vision, batch: Batch) -> float:
    """Both products of one block's attention, which runs over each image by itself."""
    return 4 * batch.patches**2 / max(batch.images, 1) * vision.hidden


def _vision_forward(vision: Vision, batch: Batch) -> float:
    patches, merged = batch.patches, batch.patches / vision.merge**2
    embed = vision.patch_values * vision.hidden
    products = 2 * patches * (vision.depth * _block(vision) + embed) + 2 * merged * _merging(vision)
    return batch.rows * (products + vision.depth * _vision_attention(vision, batch))


def _vision_backward(anatomy: Anatomy, batch: Batch) -> float:
    if not anatomy.vision_trained:
        return 0.0
    vision, first = anatomy.vision, anatomy.first_trained_block
    patches, merged = batch.patches, batch.patches / vision.merge**2
    blocks = [weight for block in anatomy.blocks for weight in block.values()]
    reached = 0 if first is None else vision.depth - first
    total = reached * (2 * patches * _block(vision) + 2 * _vision_attention(vision, batch))
    total += 2 * merged * _merging(vision)
    mergers = [weight for merger in anatomy.mergers for weight in merger.values()]
    for weights, positions in ((blocks, patches), (mergers, merged)):
        own = sum(weight.size for weight in weights if weight.linear and (weight.trained or weight.copied))
        total += positions * (2 * own + 6 * _adapters(weights))
    return batch.rows * total
