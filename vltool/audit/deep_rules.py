"""Findings of a second count of what trains, on the model itself without its weights: `check --deep`."""

from __future__ import annotations

from collections.abc import Iterator

from vltool.audit.finding import Finding, Rule
from vltool.audit.trainable import Trainable, trainable
from vltool.errors import BadContent, InvalidInput
from vltool.recipe.schema import Recipe
from vltool.run import launch
from vltool.run.evidence import TowerRow
from vltool.run.plan import RunPlan

MOST_PERMUTED = 2 * 2**30
"""Bytes of BOFT's permutation matrices, which peft builds in the host's memory, beyond which nothing is built."""


def judge_deep(plan: RunPlan, recipe: Recipe) -> list[Finding]:
    """Build the model and its tuner on torch's meta device, and hold its parameters against the table from headers.

    Raises MissingOnHost without the training stack, and as `trainable` for a base that cannot be read.
    """
    table, where = trainable(plan), recipe.where("tuner.tuner_type")
    if (permuted := _permuted(plan, table)) > MOST_PERMUTED:
        what = f"parameters were not counted a second time: peft would build {permuted / 2**30:.0f} GiB of permutations"
        remedy = "nothing: the table from headers holds; a smaller base of the same kind can be verified"
        return [Finding(id="deep-parameters", severity="note", what=what, where=where, remedy=remedy)]
    try:
        rows = launch.count_deep(plan)
    except (InvalidInput, BadContent) as error:
        return [
            Finding(id="deep-parameters", severity="error", what=problem.what, where=where, remedy=problem.do)
            for problem in error.problems
        ]
    remedy = "report this with plan.json; the count of the model itself is what train will see"
    return [
        Finding(id="deep-parameters", severity="error", what=what, where=where, remedy=remedy)
        for what in differences(table, rows)
    ]


def differences(table: Trainable, rows: list[TowerRow]) -> Iterator[str]:
    """Where the table and the rows of a second count do not agree, in words."""
    counted = {row.tower: row for row in rows}
    for mine in table.rows:
        theirs = counted[mine.tower]
        for name, here, there in (
            ("train", mine.trainable, theirs.trainable),
            ("are frozen", mine.frozen, theirs.frozen),
        ):
            if here != there:
                yield f"{mine.tower}: by the headers {here:,} parameters {name}, in the model {there:,}"


def _permuted(plan: RunPlan, table: Trainable) -> int:
    """Bytes of BOFT's permutation matrices: a square of each module's input, in fp32."""
    if plan.tuner.tuner_type != "boft":
        return 0
    return sum(4 * weight.shape[1] ** 2 for weight in table.weights if weight.adapter_size)


RULES: tuple[Rule, ...] = (
    Rule(
        id="deep-parameters",
        severity="error",
        means="the model, built without weights, trains other parameters than the table says",
        why="The table and the memory plan are counted from the base's headers. --deep builds the model and its tuner "
        "with the installed transformers, ms-swift and peft on torch's meta device, which takes no memory for weights, "
        "and counts again. A difference means that an installed version prepares the tuner otherwise, or that the "
        "tuner cannot be made at all.",
        remedy="Mend the tuner section where it cannot be made; otherwise install the versions that vltool names, and "
        "report the difference.",
        covers="health check: Adapter config correct (for LoRA mode)",
    ),
)
"""Rules of this module."""
