"""What augmentation came to, summed up over batches and processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from vltool.data.dataset import Change
from vltool.data.geometry import KINDS

SHORT = {"bbox_2d": "bbox", "poly": "poly", "line": "line"}
"""How metrics call a kind of geometry."""

COUNTED = (
    "samples", "applied", "reverted", "crops", "crops_taken",
    *(f"{what}_{SHORT[kind]}" for what in ("objects", "dropped") for kind in KINDS),
)  # fmt: skip
"""What `counts` counts, by names that are the same on every process."""


def counts(changes: Iterable[Change]) -> Counter[str]:
    """Samples, those that were changed, crops that were drawn and taken, and objects by kind."""
    sums: Counter[str] = Counter()
    for change in changes:
        sums["samples"] += 1
        sums["applied"] += not change.bypassed and not change.reverted
        sums["reverted"] += change.reverted
        sums["crops"] += change.cropped is not None
        sums["crops_taken"] += change.cropped is True
        sums.update(f"objects_{SHORT[kind]}" for kind in change.objects)
        sums.update(f"dropped_{SHORT[kind]}" for kind in change.dropped)
    return sums


def shares(sums: Mapping[str, float]) -> dict[str, float]:
    """The metrics of these sums, each a share of what there was; {} where nothing augments.

    `augment/applied` and `augment/reverted` are shares of samples, `augment/cropped` of the crops that were drawn,
    `augment/dropped` of objects, `augment/dropped_bbox` and so on of those of a kind.
    """
    found = {"applied": "samples", "reverted": "samples", "crops_taken": "crops"}
    named = {"crops_taken": "cropped"}
    metrics = {
        f"augment/{named.get(part, part)}": sums[part] / sums[whole] for part, whole in found.items() if sums[whole]
    }
    if objects := sum(sums[f"objects_{kind}"] for kind in SHORT.values()):
        metrics["augment/dropped"] = sum(sums[f"dropped_{kind}"] for kind in SHORT.values()) / objects
    return metrics | {
        f"augment/dropped_{kind}": sums[f"dropped_{kind}"] / sums[f"objects_{kind}"]
        for kind in SHORT.values()
        if sums[f"objects_{kind}"]
    }
