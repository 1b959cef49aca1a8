"""A plan and its base's headers -> the table of what trains, tower by tower, as `train` reports it before step 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltool.audit.weights import Weight, read_weights
from vltool.checkpoint.architecture import TOWERS, Tower
from vltool.run.evidence import TowerRow
from vltool.run.plan import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerCount:
    """Elements of one tower, by what becomes of them."""

    tower: Tower
    full: int
    """Trained in place."""
    copies: int
    """Trained as copies beside the base's own (`modules_to_save`)."""
    adapter: int
    """Of adapters that train."""
    frozen: int
    """All others: the base's own, those that copies stand beside included, and what is carried of an earlier stage."""
    carried: int
    """Of the frozen ones, adapters and copies of an earlier stage."""

    @property
    def trainable(self) -> int:
        """Elements that get a gradient."""
        return self.full + self.copies + self.adapter

    def row(self) -> TowerRow:
        """The row of the audit before step 1."""
        return TowerRow(tower=self.tower, should_train=self.trainable > 0, trainable=self.trainable, frozen=self.frozen)

    def to_json(self) -> dict[str, Any]:
        """The row as a flat JSON object."""
        return {
            "tower": self.tower,
            "trainable": self.trainable,
            "full": self.full,
            "copies": self.copies,
            "adapter": self.adapter,
            "frozen": self.frozen,
            "carried": self.carried,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """What a plan trains of its base."""

    rows: tuple[TowerCount, ...]
    """One for each tower, those of which the base holds nothing included."""
    weights: tuple[Weight, ...]
    """What the rows were counted from."""

    @property
    def total(self) -> int:
        """Elements that train."""
        return sum(row.trainable for row in self.rows)

    @property
    def frozen(self) -> int:
        """Elements that do not."""
        return sum(row.frozen for row in self.rows)

    @property
    def share(self) -> float:
        """Of all elements, those that train."""
        return self.total / max(self.total + self.frozen, 1)

    def to_json(self) -> dict[str, Any]:
        """The table as a JSON object."""
        return {
            "towers": [row.to_json() for row in self.rows],
            "trainable": self.total,
            "frozen": self.frozen,
            "share": self.share,
        }


def trainable(plan: RunPlan) -> Trainable:
    """What the plan trains, counted from config.json and headers. Raises as `read_weights`."""
    weights = read_weights(Path(plan.original), plan.tuner, plan.arguments)
    return Trainable(rows=tuple(_count(tower, weights) for tower in TOWERS), weights=weights)


def _count(tower: Tower, weights: Iterable[Weight]) -> TowerCount:
    own = [weight for weight in weights if weight.tower == tower]
    full = sum(weight.size for weight in own if weight.trained)
    kept = sum(weight.elements for weight in own if weight.kept)
    carried = kept + sum(weight.adapter_size for weight in own if not weight.adapter_trained)
    return TowerCount(
        tower=tower,
        full=full,
        copies=sum(weight.elements for weight in own if weight.copied),
        adapter=sum(weight.adapter_size for weight in own if weight.adapter_trained),
        frozen=sum(weight.size + weight.fixed for weight in own) - full + carried,
        carried=carried,
    )
