"""Last hidden states and head weights of student and teacher, without logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from vltool.checkpoint.architecture import in_adapter
from vltool.errors import RunFailed
from vltool.training.vision_kd import Features, FeatureTap


class HeadTap:
    """Takes what enters a model's language head and lets the head see no position at all.

    The hidden states come from an ordinary call of the (possibly wrapped) model, so hooks, gradient
    averaging and checkpointing work as usual, and no [tokens, vocabulary] tensor is made.
    """

    def __init__(self, model: Any) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.head: nn.Module = base.get_output_embeddings()
        self._hidden_BSH: Tensor | None = None
        self._handle = self.head.register_forward_pre_hook(self._keep)
        self._open = False

    def _keep(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self._open:
            return None
        self._hidden_BSH = args[0]
        return (args[0][:, :0], *args[1:])

    def hidden(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Call `model` and return its last hidden states [B, S, H]. `inputs` hold no labels."""
        self._open = True
        try:
            model(**inputs, use_cache=False)
        finally:
            self._open = False
        hidden_BSH, self._hidden_BSH = self._hidden_BSH, None
        assert hidden_BSH is not None, "the model did not call its language head"
        return hidden_BSH

    def weight(self, *, adapters: bool = True) -> Tensor:
        """The head's weight [V, H]; with `adapters` False, the one of the base.

        Raises RunFailed for a head that carries an adapter of its own.
        """
        head = self.head
        if isinstance(head, ModulesToSaveWrapper):
            head = head.modules_to_save[head.active_adapters[0]] if adapters else head.original_module
        if not isinstance(head, nn.Linear):
            raise RunFailed(
                f"the language head is a {type(head).__name__}, whose weight is not one matrix",
                "train the head in full (tuner.modules_to_save: [lm_head]) or not at all",
            )
        return head.weight

    def close(self) -> None:
        """Take the hook away again."""
        self._handle.remove()


class Teacher(Protocol):
    """Where the teacher's signal comes from."""

    def hidden_and_head(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Last hidden states [B, S, H] and head weight [V, H], both without gradient."""

    def features(self, inputs: Mapping[str, Any]) -> Features:
        """What the vision tower makes of the images, without gradient and without the language tower."""

    def all(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Features]:
        """Both, of one forward pass."""

    def writing(self) -> AbstractContextManager[Any]:
        """Inside, the model that it gives generates as the teacher."""


class AdaptersOff:
    """The student with its adapters and saved modules disabled is the teacher: no second copy."""

    def __init__(self, model: Any, tap: HeadTap, features: FeatureTap) -> None:
        self._model = model
        self._tap = tap
        self._features = features
        self._frozen = [p for name, p in model.named_parameters() if in_adapter(name) and not p.requires_grad]

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        with torch.no_grad(), self._model.disable_adapter(), evaluating(self._model):
            yield
        # peft makes all of an adapter trainable when it is switched on again.
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def hidden_and_head(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """See `Teacher`."""
        with self._teaching():
            return self._tap.hidden(self._model, inputs), self._tap.weight(adapters=False)

    def features(self, inputs: Mapping[str, Any]) -> Features:
        """See `Teacher`."""
        with self._teaching():
            return self._features.of_images(inputs)

    def all(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Features]:
        """See `Teacher`."""
        with self._features.listening() as features:
            return *self.hidden_and_head(inputs), features

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """See `Teacher`."""
        with self._teaching():
            yield self._model


class FrozenCopy:
    """A second model is the teacher."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tap = HeadTap(model)
        self._features = FeatureTap(model)

    def hidden_and_head(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """See `Teacher`."""
        with torch.no_grad():
            return self._tap.hidden(self._model, inputs), self._tap.weight()

    def features(self, inputs: Mapping[str, Any]) -> Features:
        """See `Teacher`."""
        with torch.no_grad():
            return self._features.of_images(inputs)

    def all(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Features]:
        """See `Teacher`."""
        with self._features.listening() as features:
            return *self.hidden_and_head(inputs), features

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """See `Teacher`."""
        yield self._model


@contextmanager
def gathered(*weights: Tensor | None) -> Iterator[None]:
    """Inside, weights that ZeRO-3 keeps in shards are whole. To be entered by all processes."""
    shards = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not shards:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(shards):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the former mode afterwards: without it, checkpointing would run its recompute path."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
