"""What batches came to, summed up over a window of them and over processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vltool.data.dataset import Change
from vltool.run.distillation import DistillationPlan, Source
from vltool.training.changes import COUNTED, counts, shares
from vltool.training.geometry_tokens import GEOMETRIES
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


SOURCES: tuple[Source, ...] = ("dataset", "student", "teacher")


class Meter:
    """Sums of a window of batches, on their device in float64: means are taken once, of sums."""

    def __init__(self, kd: DistillationPlan | None) -> None:
        self._plan = kd
        self._components = () if kd is None or kd.visual is None else enabled_components(kd.visual)
        self._sums: dict[str, Tensor] = {}
        self._geometries: Tensor | None = None
        self._counts = dict.fromkeys(("batches", "patches", "answers", "read_answers", "skipped"), 0)
        self._changes: Counter[str] = Counter()

    def add(self, out: Losses, *, patches: int, with_kd: bool, source: Source = "dataset") -> None:
        """Add a batch, of whose images there are so many patches.

        with_kd: count what the teacher said. source: whose text it is; the student's own has no cross entropy.
        """
        text = out.text
        self._counts["batches"] += 1
        self._sum("loss", (text.loss * out.label_tokens).detach())
        self._sum(f"tokens/{source}", text.tokens)
        if source != "student":
            self._sum("ce", text.ce_sum)
            self._sum("correct", text.correct)
            self._sum("entropy", text.entropy_sum)
        if text.groups is not None:
            self._geometries = text.groups if self._geometries is None else self._geometries + text.groups
        if not with_kd:
            return
        self._sum(f"kd/{source}", text.kd_sum)
        self._sum(f"kd_tokens/{source}", text.tokens)
        self._counts["patches"] += patches
        for name, term in out.vision.items():
            # A term is a sum over its tokens, so many a patch, divided by those of the step.
            self._sum(f"vision/{name}", term.detach() * out.patches)

    def count_answers(self, *, total: int, read: int) -> None:
        """Add so many answers of the teacher's, of which some were read from its cache."""
        self._counts["answers"] += total
        self._counts["read_answers"] += read

    def count_skipped(self, records: int) -> None:
        """Add so many records that a batch lacks because they are bad."""
        self._counts["skipped"] += records

    def count_changes(self, changes: Iterable[Change]) -> None:
        """Add what augmentation came to in a batch's samples."""
        self._changes += counts(changes)

    def _sum(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _totals(self, ranks: Ranks) -> dict[str, float]:
        """All sums, over all processes."""
        names = ["loss", "ce", "correct", "entropy", *(f"vision/{name}" for name in self._components)]
        names += [f"{kind}/{source}" for kind in ("tokens", "kd", "kd_tokens") for source in SOURCES]
        names += [f"{kind}/{geometry}" for kind in ("ce", "correct", "tokens") for geometry in GEOMETRIES]
        mine = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        known = dict(zip(self._sums, mine, strict=True)) | self._counts | self._changes
        if self._geometries is not None:
            for geometry, (ce, _, _, correct, tokens) in zip(GEOMETRIES, self._geometries[1:].tolist(), strict=True):
                known |= {f"ce/{geometry}": ce, f"correct/{geometry}": correct, f"tokens/{geometry}": tokens}
        names += [*self._counts, *COUNTED]
        return dict(zip(names, ranks.total([float(known.get(name, 0.0)) for name in names]), strict=True))

    def means(self, ranks: Ranks, *, parts: bool) -> dict[str, float]:
        """loss, sft_loss, token_acc, entropy and what the teacher adds, of all processes, each per token; and what
        augmentation came to. skipped is how many records were bad and left out, absent without any.

        llm_kd_loss and vision_kd_loss are weighted; the latter's components stand beside it, and where text is
        sampled the former's sources and their shares of the tokens. sft_loss, token_acc and entropy (of the
        student's distribution, in nats) are those of text that the student did not write, and absent without any.
        sft_loss_bbox, token_acc_bbox, and so of poly and line, are those of the dataset's coordinates of that kind,
        and absent without any.
        teacher_cached is the share of the teacher's answers that its cache knew.
        parts: take the text's loss as the sum of its parts, for evaluation, where the divergence is measured on some
        batches only; otherwise as it was trained on. Empty without any batch.
        """
        sums, plan = self._totals(ranks), self._plan
        if not sums["batches"]:
            return {}
        tokens = {source: sums[f"tokens/{source}"] for source in SOURCES}
        taught = {source: sums[f"kd_tokens/{source}"] for source in SOURCES if sums[f"kd_tokens/{source}"]}
        means = {"loss": sums["loss"] / max(sum(tokens.values()), 1.0)}
        written = tokens["dataset"] + tokens["teacher"]
        if written or not tokens["student"]:
            named = {"sft_loss": "ce", "token_acc": "correct", "entropy": "entropy"}
            means |= {name: sums[summed] / max(written, 1.0) for name, summed in named.items()}
        for geometry in GEOMETRIES:
            if count := sums[f"tokens/{geometry}"]:
                means[f"sft_loss_{geometry}"] = sums[f"ce/{geometry}"] / count
                means[f"token_acc_{geometry}"] = sums[f"correct/{geometry}"] / count
        if sums["skipped"]:
            means["skipped"] = sums["skipped"]
        if not parts:
            means |= shares(sums)
        if plan is None:
            return means
        if taught and plan.llm_kd_weight > 0.0:
            means["llm_kd_loss"] = (
                plan.llm_kd_weight * sum(sums[f"kd/{name}"] for name in taught) / sum(taught.values())
            )
        if plan.sampling is not None and not parts:
            together = max(sum(tokens.values()), 1.0)
            means |= {f"source/{source}": count / together for source, count in tokens.items() if count}
            if sums["answers"]:
                means["teacher_cached"] = sums["read_answers"] / sums["answers"]
            if plan.llm_kd_weight > 0.0:
                means |= {
                    f"llm_kd_loss/{s}": plan.llm_kd_weight * sums[f"kd/{s}"] / count for s, count in taught.items()
                }
        if parts:
            means["loss"] = plan.sft_alpha * means["sft_loss"] + means.get("llm_kd_loss", 0.0)
        if self._components and taught:
            patches = max(sums["patches"], 1.0)
            beside = {f"vision_kd_loss/{name}": sums[f"vision/{name}"] / patches for name in self._components}
            means |= {"vision_kd_loss": sum(beside.values())} | beside
            means["loss"] += means["vision_kd_loss"]
        return means
