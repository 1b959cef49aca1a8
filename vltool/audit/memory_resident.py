"""What stays on a GPU for the whole run: weights, adapters, the optimizer's states, buffers, a teacher."""

from __future__ import annotations

from vltool.audit.activations import FP32
from vltool.audit.memory_terms import Row, Terms

_STATES = {
    "adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 0, "paged_adamw_32bit": 0, "paged_adamw": 0,
    "lion_8bit": 1, "sgd": 0, "adafactor": 0,
}  # fmt: skip
"""Bytes an element of the states of optimizers that hold no tensors of the parameter's own type on the GPU."""
_ONE_MOMENT = ("lion", "lion_32bit", "rmsprop", "adagrad")
_BUCKET = int(2e8)
"""Elements of a bucket in ms-swift's zero1.json and zero2.json."""
_LIVE = int(1e9)
"""stage3_max_live_parameters of ms-swift's zero3.json."""


def resident(terms: Terms) -> tuple[list[Row], list[Row]]:
    """What stays on the GPU, and what is kept in the host's memory in its place."""
    anatomy, how = terms.anatomy, terms.how
    shards = terms.processes if terms.stage >= 3 else 1
    packed = sum(w.size for w in anatomy.weights if how.packed and w.linear and w.tower == "language")
    shared = f"1/{shards} of it (ZeRO-3)" if shards > 1 else ""
    kind = {4: "fp32", 2: "16 bits"}
    base, adapter = kind[terms.stream], kind[how.adapter]

    def said(*parts: str) -> str:
        return ", ".join(part for part in parts if part)

    weights = [
        Row("frozen weights", (anatomy.size(trained=False) - packed) * terms.stream // shards, said(base, shared)),
        Row("frozen weights in 4 bits", _packed_bytes(packed, terms) // shards, shared),
        Row("trained weights", anatomy.size(trained=True) * terms.stream // shards, said(base, shared)),
        Row("trained copies", anatomy.copied * terms.copy // shards, said("modules_to_save", kind[terms.copy], shared)),
        Row("adapters", anatomy.adapters * how.adapter // shards, said(adapter, shared)),
        Row("carried adapters", anatomy.carried * how.adapter // shards, said("frozen", adapter, shared)),
    ]
    states = optimizer_states(terms)
    gradients = Row("gradients", terms.gradient_bytes, "kept between the batches of a step")
    teacher = terms.teacher()
    here, on_host = [*weights, *states], []
    if terms.offloads("offload_optimizer"):
        here, on_host = weights, [*states, gradients]
    elif terms.keeps_gradients:
        here.append(gradients)
    if terms.offloads("offload_param"):
        here, on_host = here[len(weights) :], [*weights, *on_host]
    offloaded = terms.run.distillation is not None and terms.run.distillation.offload_teacher
    (on_host if offloaded else here).extend(teacher)
    return [row for row in (*here, *_buffers(terms)) if row.bytes], [row for row in on_host if row.bytes]


def optimizer_states(terms: Terms) -> list[Row]:
    """States of the optimizer; under DeepSpeed in 16 bits, fp32 copies of what trains, by which it is updated, too.

    Source: Rajbhandari et al., "ZeRO" (1910.02054), section 3.1: 4 + 4 + 4 bytes an element under Adam.
    """
    shards = terms.processes if terms.stage >= 1 else 1
    shared = f", 1/{shards} of it (ZeRO)" if shards > 1 else ""
    masters = terms.deepspeed is not None and terms.stream == 2
    copies = terms.trained * FP32 if masters else 0
    if terms.optimizer in _STATES:
        states = terms.trained * _STATES[terms.optimizer]
    else:
        moments = 1 if terms.optimizer in _ONE_MOMENT else 2
        states = moments * (copies or terms.trained_bytes)
    return [
        Row("fp32 copies of what trains", copies // shards, f"DeepSpeed's{shared}"),
        Row("optimizer", states // shards, f"{terms.optimizer}{shared}"),
    ]


def _buffers(terms: Terms) -> list[Row]:
    """What processes exchange gradients and weights through."""
    if terms.deepspeed is None:
        size = terms.trained_bytes if terms.processes > 1 else 0
        return [Row("gradients on their way", size, "DistributedDataParallel's buckets")]
    if terms.stage >= 3:
        live = min(_LIVE, sum(weight.size for weight in terms.anatomy.weights)) * terms.stream
        return [Row("weights put together", live, "stage3_max_live_parameters")]
    if terms.stage and terms.processes > 1:
        # The one that is filled, and the one that is on its way.
        return [Row("gradients on their way", 2 * min(_BUCKET, terms.trained) * terms.stream, "two buckets")]
    return []


def _packed_bytes(elements: int, terms: Terms) -> int:
    """bitsandbytes' 4 bits, with a scale for each 64 elements in fp32, or in 8 bits and one fp32 for 256 scales.

    Source: Dettmers et al., "QLoRA" (2305.14314), section 3.
    """
    scales = 1 / 64 + 4 / (64 * 256) if terms.value("bnb_4bit_use_double_quant") else 4 / 64
    return int(elements * (0.5 + scales))
