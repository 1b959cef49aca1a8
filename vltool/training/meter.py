"""What batches came to, summed up over a window of them and over processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vltool.run.distillation import DistillationPlan
from vltool.training.losses import DistillationLoss
from vltool.training.ranks import Ranks
from vltool.training.vision_kd import enabled_components


@dataclass(frozen=True, slots=True)
class Losses:
    """What a batch came to."""

    text: DistillationLoss
    vision: dict[str, Tensor]
    """The weighted distance of each component, divided by the vision tokens of the optimizer step; {} without."""
    label_tokens: Any
    """What the text's loss was divided by."""
    patches: float
    """What the vision terms were divided by, in patches."""

    @property
    def total(self) -> Tensor:
        """The scalar to differentiate."""
        return torch.stack((self.text.loss, *self.vision.values())).sum()


class Meter:
    """Sums of a window of batches, on their device in float64: means are taken once, of sums."""

    def __init__(self, kd: DistillationPlan | None) -> None:
        self._kd_plan = kd
        self._sums: Tensor | None = None
        self._kd: Tensor | None = None
        self._vision: Tensor | None = None
        self._patches = 0.0

    def add(self, out: Losses, *, patches: int, with_kd: bool) -> None:
        """Add a batch, of whose images there are so many patches; with_kd: count what the teacher said."""
        text = out.text
        sums = torch.stack(((text.loss * out.label_tokens).detach(), text.ce_sum, text.correct, text.tokens))
        self._sums = sums if self._sums is None else self._sums + sums
        if not with_kd:
            return
        kd = torch.stack((text.kd_sum, text.tokens))
        self._kd = kd if self._kd is None else self._kd + kd
        if out.vision:
            # A term is a sum over its tokens, so many a patch, divided by those of the step.
            vision = torch.stack([out.vision[name].detach() * out.patches for name in out.vision])
            self._vision = vision if self._vision is None else self._vision + vision
        self._patches += patches

    def means(self, ranks: Ranks, *, parts: bool) -> dict[str, float]:
        """loss, sft_loss, token_acc and what the teacher adds, of all processes, each per token.

        llm_kd_loss and vision_kd_loss are weighted; the latter's components stand beside it. parts: take the
        text's loss as the sum of its parts, for evaluation, where the divergence is measured on some batches
        only; otherwise as it was trained on. Empty without any batch.
        """
        plan = self._kd_plan
        components = () if plan is None or plan.visual is None else enabled_components(plan.visual)
        mine = [0.0] * (8 + len(components))
        if self._sums is not None:
            mine[:5] = [*self._sums.tolist(), 1.0]
        if self._kd is not None:
            mine[5:7] = self._kd.tolist()
        mine[7] = self._patches
        if self._vision is not None:
            mine[8:] = self._vision.tolist()
        loss, ce, correct, tokens, batches, kd, kd_tokens, patches, *vision = ranks.total(mine)
        if not batches:
            return {}
        tokens = max(tokens, 1.0)
        means = {"loss": loss / tokens, "sft_loss": ce / tokens, "token_acc": correct / tokens}
        if plan is None:
            return means
        if kd_tokens and plan.llm_kd_weight > 0.0:
            means["llm_kd_loss"] = plan.llm_kd_weight * kd / kd_tokens
        if parts:
            means["loss"] = plan.sft_alpha * means["sft_loss"] + means.get("llm_kd_loss", 0.0)
        if components and kd_tokens:
            beside = {
                f"vision_kd_loss/{name}": sum_ / max(patches, 1.0)
                for name, sum_ in zip(components, vision, strict=True)
            }
            means |= {"vision_kd_loss": sum(beside.values())} | beside
            means["loss"] += means["vision_kd_loss"]
        return means
