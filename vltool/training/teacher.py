"""Last hidden states and head weights of student and teacher, without logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from vltool.errors import RunFailed
from vltool.training.shared_vision import SharedBlocks, visual_of
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
        if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
            raise RunFailed(
                f"the language head is a {type(head).__name__}, whose weight is not one matrix",
                "train the head in full (tuner.modules_to_save: [lm_head]) or not at all",
            )
        return head.weight

    def close(self) -> None:
        """Take the hook away again."""
        self._handle.remove()


class Teacher:
    """Where the teacher's signal comes from: a model that runs without gradient on the batch the student has just seen.

    Its passes are made in inference mode, in evaluation mode and without a KV cache.
    """

    def __init__(self, model: Any, tap: HeadTap, features: FeatureTap, shared: SharedBlocks | None) -> None:
        """shared: what the student's vision tower leaves to go on with; None where the two have nothing in common."""
        self._model = model
        self._tap = tap
        self._features = features
        self._shared = shared
        self._in_shards = any(hasattr(parameter, "ds_id") for parameter in model.parameters())

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Inside, the model is the teacher."""
        # ZeRO-3 gathers parameters into tensors that the student's pass uses as well.
        with torch.no_grad() if self._in_shards else torch.inference_mode():
            yield

    def watching(self) -> AbstractContextManager[None]:
        """Inside, the student makes the pass on the batch that this teacher is asked about next."""
        return nullcontext() if self._shared is None else self._shared.listening()

    def head(self) -> Tensor:
        """The head's weight [V, H], as it is during a pass."""
        return self._tap.weight()

    def hidden_and_head(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Last hidden states [B, S, H] and head weight [V, H]."""
        with self.teaching():
            if self._shared is not None and self._shared.heard:
                inputs = self._shared.go_on(visual_of(self._model), inputs)
            return self._tap.hidden(self._model, inputs), self.head()

    def features(self, inputs: Mapping[str, Any]) -> Features:
        """What the vision tower makes of the images, without the language tower."""
        with self.teaching():
            if self._shared is None or not self._shared.heard:
                return self._features.of_images(inputs)
            with self._features.listening() as features:
                self._shared.go_on(visual_of(self._model), inputs)
            return features

    def all(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Features]:
        """Both, of one forward pass."""
        with self._features.listening() as features:
            return *self.hidden_and_head(inputs), features

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """Inside, the model that it gives generates as the teacher."""
        with self.teaching():
            yield self._model


class AdaptersOff(Teacher):
    """The student with its adapters and saved modules disabled is the teacher: no second copy."""

    def __init__(self, model: Any, tap: HeadTap, features: FeatureTap, shared: SharedBlocks | None) -> None:
        super().__init__(model, tap, features, shared)
        self._modules = list(model.modules())
        self._adapted = [m for m in self._modules if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """See `Teacher`."""
        was_training = self._model.training
        self._switch(training=False, disabled=True)
        try:
            with super().teaching():
                yield
        finally:
            self._switch(training=was_training, disabled=False)

    def _switch(self, *, training: bool, disabled: bool) -> None:
        # peft's own `disable_adapter` walks the model several times, and leaves all of an adapter trainable.
        for module in self._adapted:
            module._disable_adapters = disabled  # noqa: SLF001
        for module in self._modules:
            module.training = training

    def head(self) -> Tensor:
        """See `Teacher`."""
        return self._tap.weight(adapters=False)


class FrozenCopy(Teacher):
    """A second model is the teacher."""

    def __init__(self, model: Any, shared: SharedBlocks | None, *, offload: bool) -> None:
        """offload: keep its weights in the host's memory between passes; the device gets them for each."""
        super().__init__(model, HeadTap(model), FeatureTap(model), shared)
        self._device = next(model.parameters()).device
        self._home: list[tuple[Tensor, Tensor]] = []
        if offload and self._device.type != "cpu":
            tensors = (*model.parameters(), *model.buffers())
            self._home = [(tensor, tensor.data.cpu().pin_memory()) for tensor in tensors]
            self._leave()

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """See `Teacher`."""
        for tensor, home in self._home:
            tensor.data = home.to(self._device, non_blocking=True)
        try:
            with super().teaching():
                yield
        finally:
            self._leave()

    def head(self) -> Tensor:
        """See `Teacher`."""
        # A name of its own for the weight on the device, which the parameter leaves again.
        return super().head().detach()

    def _leave(self) -> None:
        for tensor, home in self._home:
            tensor.data = home


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
