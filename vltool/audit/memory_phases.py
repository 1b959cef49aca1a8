"""What comes and goes on a GPU in each phase of a step, beside what stays."""

from __future__ import annotations

from dataclasses import dataclass

from vltool.audit import activations
from vltool.audit.activations import FP32
from vltool.audit.memory_terms import Row, Terms

LOSS_CHUNK = 256
"""Label positions whose logits are there at once (`vltool.training.losses`)."""
_TOKEN_FACTS = 64
"""Bytes of a token's id, label, mask and three positions, in int64."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a step, and what is on the GPU at its worst."""

    name: str
    rows: tuple[Row, ...]

    @property
    def bytes(self) -> int:
        """All of it together."""
        return sum(row.bytes for row in self.rows)


def phases(terms: Terms) -> list[Phase]:
    """The phases of a step, in their order. Raises as `take_census` for a teacher's folder."""
    anatomy, how, text = terms.anatomy, terms.how, terms.anatomy.text
    layers = [activations.decoder_layer(text, layer, how) * terms.tokens for layer in anatomy.layers]
    first = anatomy.first_trained_layer
    reached = [] if first is None else layers[first:]
    edge = terms.tokens * text.hidden * terms.stream
    again = 0
    kept = Row("activations", sum(reached), f"of {len(reached)} decoder layers")
    first_kept = Row("activations", max(reached, default=0), "of one decoder layer")
    if terms.checkpoints:
        again = max(layers, default=0)
        kept = Row("activations", edge * len(layers), "each decoder layer's input (gradient_checkpointing)")
        first_kept = Row("activations", edge, "one decoder layer's input")
    recomputed = Row("a layer's activations", again, "computed again")
    pixels = terms.patches * anatomy.vision.patch_values * FP32
    batch = Row("the batch", pixels + terms.tokens * _TOKEN_FACTS, "pixels in fp32")
    vision = _Vision(terms)
    common = (batch, vision.kept)
    casts = Row("copies in 16 bits", _casts(terms), "which autocast makes of fp32 weights")
    end = Row("the last norm", terms.tokens * text.hidden * (FP32 + terms.stream))
    worst = max(anatomy.layers, key=lambda layer: activations.layer_gradients(text, layer, how), default={})
    results = Row("a layer's results", activations.layer_results(text, worst, how) * terms.tokens)
    gradients = Row("a layer's gradients", activations.layer_gradients(text, worst, how) * terms.tokens)
    made = Row("gradients", 0 if terms.keeps_gradients else terms.gradient_bytes, "of all that trains")
    head = text.vocab * text.hidden * terms.stream if anatomy.head_trained else 0
    # With a tied head its gradient is that of the embedding, which the first layer's pass adds to.
    of_head = Row("the head's gradient", head)

    found = [Phase("the vision tower's pass", (*common, vision.results))]
    found.append(Phase("the student's pass", (*common, kept, casts, vision.seen, results, end)))
    if terms.runs_teacher:
        found.append(Phase("the teacher's pass", (*common, kept, casts, vision.seen, end, *_teaching(terms))))
    found.append(Phase("the loss", (*common, kept, casts, end, *_loss(terms))))
    # Under checkpointing the copies are made layer by layer.
    backward = (*common, kept, *(() if terms.checkpoints else (casts,)), recomputed, gradients, of_head)
    found.append(Phase("the last layer's backward pass", backward))
    found.append(Phase("the first layer's backward pass", (*common, first_kept, recomputed, gradients, made)))
    if vision.kept.bytes:
        found.append(Phase("the vision tower's backward pass", (*common, vision.recomputed, vision.gradients, made)))
    found.append(Phase("the optimizer's step", (made, _update(terms))))
    return [Phase(phase.name, tuple(row for row in phase.rows if row.bytes)) for phase in found]


class _Vision:
    """What the vision tower keeps, gives and makes."""

    def __init__(self, terms: Terms) -> None:
        anatomy, vision, how = terms.anatomy, terms.anatomy.vision, terms.how
        block = activations.block_results(vision, how) * terms.patches
        self.results = Row("a vision block's results", block)
        self.gradients = Row("a vision block's gradients", block)
        mergers = (1 + len(vision.deepstack)) * terms.merged * vision.out
        self.seen = Row(
            "vision features",
            (terms.patches * vision.hidden + mergers) * how.product,
            "until the layers are done",
        )
        self.kept, again = Row("vision activations", 0), 0
        if anatomy.vision_trained:
            size = sum(activations.merger(vision, merger, how) for merger in anatomy.mergers) * terms.merged
            blocks = [activations.vision_block(vision, own, how) * terms.patches for own in anatomy.blocks]
            first = anatomy.first_trained_block
            if terms.vision_checkpoints:
                # ms-swift lets the patches' embedding require a gradient, so that all blocks keep their input.
                size += vision.depth * terms.patches * vision.hidden * terms.stream
                again = max(blocks, default=0)
            elif first is not None:
                size += sum(blocks[first:])
            note = "each block's input, and the mergers'" if again else "of what a gradient has to reach"
            self.kept = Row("vision activations", size, note)
        self.recomputed = Row("a vision block's activations", again, "computed again")


def _casts(terms: Terms) -> int:
    """Autocast keeps a 16-bit copy of each fp32 weight whose product a gradient goes through."""
    how, anatomy = terms.how, terms.anatomy
    if not how.autocast:
        return 0
    adapters = anatomy.adapters + anatomy.carried if how.adapter == FP32 else 0
    base = sum(weight.size for weight in anatomy.weights if weight.linear) if how.stream == FP32 else 0
    return how.product * (adapters + base)


def _teaching(terms: Terms) -> list[Row]:
    plan, vision = terms.run.distillation, terms.anatomy.vision
    assert plan is not None, "no teacher runs without a plan of it"
    rows = [Row("a teacher's layer", activations.teacher_results(terms.anatomy.text, terms.how) * terms.tokens)]
    if plan.offload_teacher:
        rows += terms.teacher()
    elif plan.teacher == "adapters_off" and terms.anatomy.first_trained_block != 0:
        taps = len(vision.deepstack) * terms.patches * vision.hidden * terms.how.product
        rows.append(Row("shared vision features", taps, "from which the teacher goes on"))
    return rows


def _loss(terms: Terms) -> list[Row]:
    """Logits of a chunk, the student's and the teacher's, beside the gradient of the chunk before.

    The kernels write the gradient into the student's logits; plain torch, where Triton does not run, takes more.
    """
    text, plan = terms.anatomy.text, terms.run.distillation
    chunk = min(LOSS_CHUNK, terms.labels) * text.vocab * terms.stream
    states = terms.labels * text.hidden * terms.stream
    rows = [
        Row("logits", (3 if terms.runs_teacher else 2) * chunk, f"of {LOSS_CHUNK} positions at once"),
        Row("hidden states at labels", states * (4 if terms.runs_teacher else 3), "and their gradient"),
    ]
    if terms.anatomy.head_trained:
        # Summed in fp32, beside a chunk's product in both precisions.
        size = text.vocab * text.hidden * (2 * FP32 + terms.stream)
        rows.append(Row("the head's gradient", size, "summed in fp32"))
    if terms.runs_teacher and plan is not None and plan.offload_teacher:
        rows.append(Row("the teacher's head", text.vocab * text.hidden * terms.stream))
    return rows


def _update(terms: Terms) -> Row:
    """What an update needs beside parameters, gradients and states: where it is fused, nothing."""
    if terms.offloads("offload_optimizer"):
        return Row("the update", 0)
    if terms.deepspeed is not None:
        shards = terms.processes if terms.stage >= 1 else 1
        return Row("the update", terms.trained * FP32 // shards, "gradients in fp32")
    return Row("the update", 0 if "fused" in terms.optimizer else terms.trained_bytes, "of all tensors at once")
