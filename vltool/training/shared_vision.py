"""Vision blocks that student and teacher have in common run once: the teacher goes on from where they part.

Suffixes: T patches, D features.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from vltool.checkpoint.architecture import in_adapter, plain_name, tower_of

_BLOCK = re.compile(r"visual\.blocks\.(\d+)\.")


def common_blocks(model: nn.Module) -> int:
    """How many leading vision blocks of the student are those of the base: neither trained nor adapted.

    None where the patches' own embedding is not the base's.
    """
    visual = visual_of(model)
    common = len(visual.blocks)
    for name, parameter in model.named_parameters():
        if tower_of(name) == "vision" and (parameter.requires_grad or in_adapter(name)):
            block = _BLOCK.search(plain_name(name))
            common = min(common, int(block.group(1)) if block else 0)
    return common


def visual_of(model: Any) -> Any:
    """The vision tower of a model with or without an adapter."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.model.visual


class SharedBlocks:
    """What the first blocks of the student's vision tower made of a batch, for the teacher to go on with."""

    def __init__(self, model: nn.Module, count: int) -> None:
        """count: how many blocks are shared; at least one."""
        visual = visual_of(model)
        self._count = count
        self._entry: tuple[Tensor, dict[str, Any]] | None = None
        self._taps_TD: list[Tensor] = []
        self._open = False
        after = visual.blocks[count] if count < len(visual.blocks) else visual.merger
        self._handles = [after.register_forward_pre_hook(self._keep_entry, with_kwargs=True)]
        # Deepstack mergers read the outputs of some blocks.
        for block, merger in zip(visual.deepstack_visual_indexes, visual.deepstack_merger_list, strict=True):
            if block < count:
                self._handles.append(merger.register_forward_pre_hook(self._keep_tap))

    def _keep_entry(self, _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        if self._open:
            self._entry = (args[0].detach(), kwargs)

    def _keep_tap(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._open:
            self._taps_TD.append(args[0].detach())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, keep what the one forward pass of the student's makes."""
        self._entry, self._taps_TD, self._open = None, [], True
        try:
            yield
        finally:
            self._open = False

    @property
    def heard(self) -> bool:
        """Whether the student has made a pass that no teacher has gone on from."""
        return self._entry is not None

    def go_on(self, visual: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A model's inputs with the images encoded: by the shared blocks, then by the rest of the teacher's tower."""
        assert self._entry is not None, "the student's vision tower has not run"
        hidden_TD, kwargs = self._entry
        mergers = dict(zip(visual.deepstack_visual_indexes, visual.deepstack_merger_list, strict=True))
        # Those of the shared blocks come first.
        features = [merger(tap_TD) for merger, tap_TD in zip(mergers.values(), self._taps_TD, strict=False)]
        for number in range(self._count, len(visual.blocks)):
            hidden_TD = visual.blocks[number](hidden_TD, **kwargs)
            if number in mergers:
                features.append(mergers[number](hidden_TD))
        encoded = BaseModelOutputWithDeepstackFeatures(
            last_hidden_state=hidden_TD,
            pooler_output=(visual.merger(hidden_TD),),
            deepstack_features=[(feature_TD,) for feature_TD in features],
        )
        self._entry, self._taps_TD = None, []
        others = {name: value for name, value in inputs.items() if name != "pixel_values"}
        return others | {"mm_encoder_outputs": {"image": encoded}}

    def close(self) -> None:
        """Take the hooks away again."""
        for handle in self._handles:
            handle.remove()
