"""What a plan says of a step's memory, worked out once: precisions, sharding, what trains, what is read at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltool.audit.activations import FP32, Arithmetic
from vltool.audit.anatomy import Anatomy, of_teacher
from vltool.audit.model_flops import Batch
from vltool.run.arguments import value_of
from vltool.run.deepspeed import zero_stage
from vltool.run.plan import RunPlan

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a memory plan."""

    name: str
    bytes: int
    note: str = ""


class Terms:
    """A plan, its base and a batch, in the terms in which memory is counted. Sizes are of one process."""

    def __init__(self, run: RunPlan, anatomy: Anatomy, batch: Batch) -> None:
        self.run, self.anatomy, self.batch = run, anatomy, batch
        arguments = run.arguments
        self.deepspeed: str | dict[str, Any] | None = arguments.get("deepspeed")
        self.stage = zero_stage(self.deepspeed)
        """Of ZeRO; 0 without DeepSpeed."""
        self.processes = run.launch.processes
        half = bool(arguments.get("bf16") or arguments.get("fp16"))
        self.stream = _BYTES.get(str(arguments.get("torch_dtype")), 2)
        """Bytes of an element of hidden states and weights."""
        if self.deepspeed is not None and half:
            # DeepSpeed casts the model, adapters and all, and does without autocast.
            self.stream = 2
        adapter = self.stream if self.deepspeed is not None and half else FP32
        self.how = Arithmetic(
            stream=self.stream,
            adapter=_BYTES.get(str(arguments.get("lora_dtype")), adapter),
            autocast=half and self.deepspeed is None,
            packed=arguments.get("quant_bits") == 4,
            dropout=float(self.value("lora_dropout") or 0.0),
            padded=batch.padded,
        )
        self.copy = FP32 if self.how.autocast and arguments.get("bf16") else self.stream
        """Bytes of an element of what `modules_to_save` copies: in fp32 where nobody else keeps what trains so."""
        self.checkpoints = bool(self.value("gradient_checkpointing"))
        own = arguments.get("vit_gradient_checkpointing")
        self.vision_checkpoints = self.checkpoints if own is None else bool(own)
        self.accumulation = int(arguments.get("gradient_accumulation_steps") or 1)
        self.tokens = batch.rows * batch.tokens
        self.labels = batch.rows * batch.labels
        self.patches = batch.rows * batch.patches
        self.merged = self.patches // anatomy.vision.merge**2
        """Tokens that images become."""

    def value(self, name: str) -> Any:
        """One of ms-swift's arguments, or its default."""
        return value_of(self.run.arguments, name)

    @property
    def optimizer(self) -> str:
        """The optimizer's name."""
        return str(self.value("optim") or "adamw_torch_fused")

    @property
    def trained(self) -> int:
        """Elements that train."""
        return self.anatomy.size(trained=True) + self.anatomy.copied + self.anatomy.adapters

    @property
    def trained_bytes(self) -> int:
        """Bytes of all that trains, which are those of its gradients, on all processes together."""
        in_place, copied = self.anatomy.size(trained=True), self.anatomy.copied
        return in_place * self.stream + copied * self.copy + self.anatomy.adapters * self.how.adapter

    @property
    def gradient_bytes(self) -> int:
        """Of one process, once the backward pass is done."""
        return self.trained_bytes // (self.processes if self.stage >= 2 else 1)

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients are there throughout a step, and not from its backward pass on."""
        return self.accumulation > 1 or self.stage >= 2

    @property
    def runs_teacher(self) -> bool:
        """Whether a teacher's language tower sees the batch."""
        plan = self.run.distillation
        return plan is not None and plan.needs_teacher and plan.cache is None and plan.llm_kd_weight > 0

    def teacher(self) -> list[Row]:
        """The weights of a teacher that is a model of its own. Raises as `take_census`."""
        plan = self.run.distillation
        if plan is None or not plan.needs_teacher or plan.teacher != "copy":
            return []
        if plan.cache is not None and plan.visual is None:
            return []
        shards = self.processes if self.stage >= 3 else 1
        return [Row("the teacher", of_teacher(Path(plan.teacher_model)) * self.stream // shards, "a copy of its own")]

    def offloads(self, part: str) -> bool:
        """Whether DeepSpeed keeps a part (`offload_param`, `offload_optimizer`) in the host's memory."""
        config = self.deepspeed
        if isinstance(config, dict):
            device = config.get("zero_optimization", {}).get(part, {}).get("device", "none")
            return bool(device != "none")
        if config is None or not config.endswith("_offload"):
            return False
        return part == "offload_optimizer" or config.startswith("zero3")
