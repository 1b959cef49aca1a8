"""Judges all that the targets of `vltool check` name; the command line only shows what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vltool.audit import checkpoint_rules, data_rules, record_rules
from vltool.audit.catalogue import RULES
from vltool.audit.data_rules import Judged
from vltool.audit.deep_rules import judge_deep
from vltool.audit.disk_rules import folders_of
from vltool.audit.fast import fast_findings
from vltool.audit.finding import Finding, arranged, chosen, failed
from vltool.audit.host import read_host
from vltool.audit.memory_rules import Planned, planned
from vltool.audit.recipe_rules import said
from vltool.audit.targets import Targets, add_refused, read_targets
from vltool.audit.trainable import Trainable, trainable
from vltool.checkpoint.completeness import completeness
from vltool.checkpoint.inspection import Inspection
from vltool.errors import BadContent, InvalidInput, Where
from vltool.recipe.schema import Recipe
from vltool.run.plan import RunPlan
from vltool.run.reporter import Reporter


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was judged, and what was found in it."""

    records: list[Judged]
    trainable: list[tuple[str, Trainable]]
    """Of each recipe whose base can be counted, its name and what it trains."""
    memory: list[Planned]
    checkpoints: list[Inspection]
    refused: list[Finding]
    """Why targets could not be judged."""
    findings: list[Finding]
    """What was found in those that could."""

    def told(self, *, only: Sequence[str] = (), ignore: Sequence[str] = ()) -> list[Finding]:
        """The findings to show, the worst first, chosen as by `finding.chosen`.

        Why a target could not be judged is always told: no choice of rules makes it good.
        """
        return arranged([*self.refused, *chosen(self.findings, known=RULES, only=only, ignore=ignore)])

    def exit_code(self, told: Iterable[Finding], *, strict: bool) -> int:
        """2 where a target could not be judged, else 1 where what is told fails the check, else 0."""
        return InvalidInput.exit_code if self.refused else int(failed(told, strict=strict))


def audit(
    targets: Sequence[str],
    *,
    recipe: str | None,
    gpu_gib: float,
    deep: bool = False,
    reporter: Reporter,
    env: Mapping[str, str] | None = None,
) -> Audit:
    """Judge recipes, mixtures, records and checkpoints, and plan the memory of each recipe.

    recipe: as in `read_targets`. gpu_gib: memory of the GPU that the run will get. deep: count what trains a second
    time, on the model without its weights, which takes the training stack. A target that cannot be judged is
    among `Audit.refused`, and the others are judged all the same. Raises InvalidInput for a recipe that nothing is
    read by, MissingOnHost for what this host lacks.
    """
    named = read_targets(targets, recipe=recipe, env=env)
    judged = list(_judged(named, reporter))
    memory = planned(judged, gpu_gib=gpu_gib)
    findings = [item for one in judged for item in one.findings]
    findings += data_rules.judge_mixtures(judged)
    findings += record_rules.judge_records(judged, stage=reporter.stage, progress=reporter.progress)
    findings += _memory(named, memory)
    counted: list[tuple[str, Trainable]] = []
    for plan, known in named.recipes:
        findings += _placed(_judge_recipe(plan, known), Where(known.files[-1]))
        try:
            counted.append((known.name, trainable(plan)))
            if deep:
                reporter.stage(f"building {known.name} without its weights")
                findings += judge_deep(plan, known)
        except (InvalidInput, BadContent) as error:
            if not failed(findings, strict=False):  # else the base itself is told to be wrong
                add_refused(named.refused, error.problems, rule="base-path", target=known.name)
    for inspection in named.checkpoints:
        findings += checkpoint_rules.judge(inspection, completeness(inspection), None)
    return Audit(
        records=judged,
        trainable=counted,
        memory=memory,
        checkpoints=named.checkpoints,
        refused=named.refused,
        findings=list(dict.fromkeys(findings)),
    )


def _judged(named: Targets, reporter: Reporter) -> Iterator[Judged]:
    for records in named.records:
        reporter.stage(f"reading {records.jsonl}")
        try:
            yield data_rules.judge(records, progress=lambda done, total: reporter.progress("records", done, total))
        except InvalidInput as error:
            add_refused(named.refused, error.problems, rule="path-absent", target=str(records.jsonl))


def _judge_recipe(plan: RunPlan, recipe: Recipe) -> Iterator[Finding]:
    """What a recipe, its base and this host say before a record is read."""
    yield from said(recipe)
    yield from fast_findings(plan, recipe, read_host(folders_of(plan)))


def _memory(named: Targets, memory: Sequence[Planned]) -> Iterator[Finding]:
    """What there is to say of memory, at the line that sets how many rows a GPU gets."""
    places = {known.name: known.where("training.per_device_train_batch_size") for _, known in named.recipes}
    for one in memory:
        yield from (replace(item, where=places[one.recipe]) for item in one.findings)


def _placed(findings: Iterable[Finding], where: Where) -> Iterator[Finding]:
    """The findings; `where` is the place of those that have none."""
    return (item if item.where else replace(item, where=where) for item in findings)
