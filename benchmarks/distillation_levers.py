"""What the distillation benchmark can switch, by name. Imports nothing heavy: vltool's own parts inside functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True, slots=True)
class Lever:
    """One thing that is done differently from the centre."""

    says: str
    overlay: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Section -> keys, laid over the centre's recipe; relative paths begin in the cell's own folder."""
    compares: bool = False
    """Whether it touches how loss and gradient are made, so that they are held against the plain path again."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered around the whole run."""


@contextmanager
def loss_arguments(**arguments: Any) -> Iterator[None]:
    """Inside, the trainer calls `distillation_loss` with these arguments in the place of its own."""
    from vltool.training import trainer

    original = trainer.distillation_loss

    def changed(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **(kwargs | arguments))

    with patch.object(trainer, "distillation_loss", changed):
        yield


def own_vision() -> AbstractContextManager[Any]:
    """Inside, the teacher runs the vision tower again, as if it had no block in common with the student."""
    from vltool.training import make_teacher

    return patch.object(make_teacher, "common_blocks", lambda model: 0)


@contextmanager
def disable_adapter() -> Iterator[None]:
    """Inside, the student becomes the teacher by peft's own context and transformers' modes."""
    import torch

    from vltool.training.teacher import AdaptersOff, evaluating

    @contextmanager
    def teaching(self: AdaptersOff) -> Iterator[None]:
        with torch.no_grad(), self._model.disable_adapter(), evaluating(self._model):
            yield

    with patch.object(AdaptersOff, "teaching", teaching):
        yield


LEVERS = {
    "eager-loss": Lever(
        "loss in plain torch, no Triton kernel", compares=True, around=partial(loss_arguments, backend="eager")
    ),
    "own-vision": Lever("the teacher runs the vision tower again", compares=True, around=own_vision),
    "disable-adapter": Lever("peft's disable_adapter, no flags", compares=True, around=disable_adapter),
    "top64": Lever(
        "offline teacher, 64 tokens a position",
        overlay={"rlhf": {"teacher_cache": "teacher-cache"}},
    ),
    "no-teacher": Lever("llm_kd_weight 0: cross entropy alone", overlay={"rlhf": {"llm_kd_weight": 0.0}}),
    "chunk-1024": Lever("loss in chunks of 1,024 positions", around=partial(loss_arguments, chunk_tokens=1024)),
}
"""Around the centre: vltool's GKD, image-heavy, checkpointing on, chunks of 512."""

ALIGNER_FULL = Lever(
    "mergers and deepstack mergers trained in full",
    overlay={
        "tuner": {
            "freeze_llm": True, "freeze_vit": True, "freeze_aligner": True, "target_regex": "^$",
            "modules_to_save": ["model.visual.merger"]
            + [f"model.visual.deepstack_merger_list.{number}" for number in range(3)],
        },
    },
)  # fmt: skip
"""Another training than all other cells': for its memory."""

LOSS_PATHS = {"default": None, "eager": "eager"}
"""Ways through `distillation_loss`, for the loss alone: what vltool takes by itself on this device, and plain torch."""
