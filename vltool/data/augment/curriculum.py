"""The operations at a position of a run, whose parameters a curriculum moves."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, NamedTuple

from vltool.data.augment.pipeline import Pipeline
from vltool.recipe.augmentation import AugmentOp
from vltool.recipe.curriculum import with_params
from vltool.recipe.schema import Augmentation

Values = dict[tuple[int, str], Any]
"""(number of an operation, parameter) -> value."""


class _Mark(NamedTuple):
    position: float
    bypass_prob: float
    values: Values


class Schedule:
    """Parameters go from one phase's values to the next's in a straight line; past the last they stay."""

    def __init__(self, augmentation: Augmentation, *, samples: int, samples_a_step: float) -> None:
        """samples: of the whole run, 100 percent. samples_a_step: of an optimizer step, all processes."""
        self._ops = augmentation.ops
        phases = augmentation.curriculum.phases if augmentation.curriculum else ()
        moving = {(number, param) for phase in phases for number, param in self._named(phase.ops)}
        values = {(number, param): getattr(self._ops[number].params, param) for number, param in moving}
        self._marks = [_Mark(0.0, augmentation.bypass_prob, values)]
        for phase in phases:
            if phase.until_step is not None:
                end = phase.until_step * samples_a_step
            else:
                end = (phase.until_percent or 0.0) / 100.0 * samples
            bypass = self._marks[-1].bypass_prob if phase.bypass_prob is None else phase.bypass_prob
            values = values | self._named(phase.ops)
            self._marks.append(_Mark(end, bypass, values))
        self._start = Pipeline(self._ops)

    def _named(self, ops: dict[str, dict[str, Any]]) -> Values:
        """What a phase names, for every operation of that name."""
        return {
            (number, param): tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)
            for number, op in enumerate(self._ops)
            for param, value in ops.get(op.name, {}).items()
        }

    def at(self, position: int) -> tuple[Pipeline, float]:
        """The pipeline and `bypass_prob` for the sample at a position of the run, from 0."""
        after = bisect_right(self._marks, float(position), key=lambda mark: mark.position)
        if after == len(self._marks):
            bypass, values = self._marks[-1].bypass_prob, self._marks[-1].values
        else:
            before, to = self._marks[after - 1 : after + 1]
            share = (position - before.position) / (to.position - before.position)
            bypass = _between(before.bypass_prob, to.bypass_prob, share)
            values = {key: _between(before.values[key], value, share) for key, value in to.values.items()}
        if not values:
            return self._start, bypass
        ops: list[AugmentOp] = list(self._ops)
        for (number, param), value in values.items():
            ops[number] = with_params(ops[number], {param: value})
        return Pipeline(ops), bypass

    def start(self) -> tuple[Pipeline, float]:
        """The operations as the recipe has them, without a curriculum."""
        return self._start, self._marks[0].bypass_prob


def _between(start: Any, end: Any, share: float) -> Any:
    if isinstance(end, tuple):
        return tuple(_between(one, other, share) for one, other in zip(start, end, strict=True))
    return start + (end - start) * share if start != end else end
