"""What the distillation benchmark can switch, by name. Imports nothing heavy: vltool's own parts inside functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch


class NotBuilt(Exception):
    """The installed vltool has no such switch."""


@dataclass(frozen=True, slots=True)
class Lever:
    """One thing that is done differently from the centre."""

    says: str
    overlay: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Section -> keys, laid over the centre's recipe; relative paths begin in the cell's own folder."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered around the whole run."""
    before: Callable[[Any], None] | None = None
    """Called with the `RunPlan` before the run, for what has to be made first; its time does not count."""


@contextmanager
def not_built() -> Iterator[None]:
    """Stands where a switch is to come."""
    raise NotBuilt("this version of vltool has no such switch")
    yield


@contextmanager
def loss_arguments(**arguments: Any) -> Iterator[None]:
    """Inside, the trainer calls `distillation_loss` with these arguments in the place of its own."""
    from vltool.training import trainer

    original = trainer.distillation_loss

    def changed(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **(kwargs | arguments))

    with patch.object(trainer, "distillation_loss", changed):
        yield


LEVERS = {
    "eager-loss": Lever("loss in eager chunks, no Triton kernel", around=not_built),  # TODO the switch of losses.py
    "own-vision": Lever("the teacher runs the vision tower again", around=not_built),  # TODO the switch of teacher.py
    "disable-adapter": Lever("peft's disable_adapter, no flags", around=not_built),  # TODO the switch of teacher.py
    "top64": Lever(
        "offline teacher, 64 tokens a position", around=not_built
    ),  # TODO rlhf.teacher_cache, made in before
    "no-teacher": Lever("llm_kd_weight 0: cross entropy alone", overlay={"rlhf": {"llm_kd_weight": 0.0}}),
    "chunk-256": Lever("loss in chunks of 256 positions", around=partial(loss_arguments, chunk_tokens=256)),
    "chunk-512": Lever("loss in chunks of 512 positions", around=partial(loss_arguments, chunk_tokens=512)),
    "chunk-1024": Lever("loss in chunks of 1,024 positions", around=partial(loss_arguments, chunk_tokens=1024)),
}
"""Around the centre: vltool's GKD, image-heavy, checkpointing on."""

LOSS_PATHS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default": nullcontext,  # what vltool does by itself on this device
    "eager": not_built,  # TODO the same switch as the lever eager-loss
}
"""Ways through `distillation_loss`, for the loss alone."""
