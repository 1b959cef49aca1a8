"""What `train` looks at before the worker starts: recipe and host, the base's files, then every record, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from vltool.audit.base_rules import PROCESSOR_FILES
from vltool.audit.disk_rules import folders_of
from vltool.audit.fast import as_error, as_problem, fast_findings
from vltool.audit.finding import Finding
from vltool.audit.host import read_host
from vltool.audit.lengthened import lengthened
from vltool.audit.memory_rules import judge_memory
from vltool.checkpoint.census import take_census
from vltool.data.scan import scan
from vltool.data.tokens import TextCounter
from vltool.errors import BadContent, InvalidInput, Problem
from vltool.recipe.schema import Recipe
from vltool.run.data import DatasetPlan
from vltool.run.plan import RunPlan
from vltool.run.reporter import Reporter

SHOWN = 20
"""Bad records that are listed; of the rest only the number is told."""


def preflight(plan: RunPlan, recipe: Recipe, reporter: Reporter) -> RunPlan:
    """Judge recipe and host by the fast rules, then look at the base and every record, as `audited`.

    Warnings are reported, and kept in the plan for the run folder's warnings.jsonl; notes are for `vltool check`. Of
    the rules nothing is asked with `custom.preflight: false`. Raises what `as_error` makes of errors, and as `audited`.
    """
    if not plan.data.preflight:
        return audited(plan, reporter)
    reporter.stage("looking at recipe and host")
    host = read_host(folders_of(plan))
    findings = fast_findings(plan, recipe, host)
    error = as_error(findings)
    if error is not None:
        raise error
    told = list(_warned(findings, reporter))
    plan, longest = _read(plan, reporter)
    told += _warned(judge_memory(plan, host, longest=longest), reporter)
    return msgspec.structs.replace(plan, warnings=tuple(told))


def _warned(findings: Iterable[Finding], reporter: Reporter) -> Iterator[str]:
    """Report the warnings among findings; yield their words."""
    for finding in findings:
        if finding.severity == "warning":
            problem = as_problem(finding)
            reporter.warn(problem)
            yield str(problem)


def audited(plan: RunPlan, reporter: Reporter) -> RunPlan:
    """Look at the base's files and at every record of the plan; return the plan with the records to leave out.

    Raises BadContent with the bad records (the first `SHOWN` of them), unless the recipe says
    `data.on_bad_record: skip`: then each is reported and left out; no record is looked at with
    `custom.preflight: false`. Warns of samples that augmentation makes too long. Raises InvalidInput
    for a base or teacher that lacks files, BadContent for one whose weights are broken.
    """
    return _read(plan, reporter)[0]


def _read(plan: RunPlan, reporter: Reporter) -> tuple[RunPlan, int | None]:
    """As `audited`; also the tokens of the longest training record that can be used, where they were counted."""
    bases = (plan.model, *((plan.distillation.teacher_model,) if plan.distillation else ()))
    for folder in dict.fromkeys(plan.original if base == plan.model else base for base in bases):
        _require_whole(Path(folder))
    if not plan.data.preflight:
        return plan, None
    reporter.stage("reading every record")
    longest: int | None = None
    counter = TextCounter.from_folder(Path(plan.original))
    splits: dict[str, tuple[DatasetPlan, ...]] = {"train": plan.data.train, "val": plan.data.val}
    problems: list[Problem] = []
    count = 0
    for split, parts in splits.items():
        read = []
        for part in parts:
            found = scan(
                Path(part.jsonl),
                **plan.data.reading(part),
                counter=counter,
                max_length=plan.data.max_length,
                check_images=False,
                progress=lambda done, total: reporter.progress("reading records", done, total),
            )
            problems += found.problems
            count += found.problem_count
            if split == "train" and found.longest is not None:
                longest = max(longest or 0, found.longest[0])
            if found.bad and len(found.bad) == found.records:
                raise BadContent([*found.problems[:SHOWN], Problem(f"{part.jsonl}: not one record can be used")])
            read.append(msgspec.structs.replace(part, skip=found.bad))
        splits[split] = tuple(read)
    if problems and plan.data.on_bad_record == "error":
        more = count - SHOWN
        rest = (
            [Problem(f"and {more} more like these", "mend them, or say data.on_bad_record: skip")] if more > 0 else []
        )
        raise BadContent([*problems[:SHOWN], *rest])
    for problem in problems:
        reporter.warn(problem)
    if count > len(problems):
        reporter.warn(Problem(f"and {count - len(problems)} more like these, left out too"))
    plan = msgspec.structs.replace(plan, data=msgspec.structs.replace(plan.data, **splits))
    drawn = lengthened(plan, counter, stage=reporter.stage, progress=reporter.progress)
    if drawn is not None and (too_long := drawn.problem(plan)) is not None:
        reporter.warn(too_long)
    return plan, longest


def _require_whole(base: Path) -> None:
    """Hold a base checkpoint's files against what loading needs, from headers alone."""
    census = take_census(base)
    if census.kind != "full":
        raise InvalidInput(f"{base} is an adapter, not a base checkpoint", "name the checkpoint that it was trained on")
    if not any((base / name).is_file() for name in PROCESSOR_FILES):
        raise InvalidInput(f"{base} holds no {' or '.join(PROCESSOR_FILES)}", "copy the whole checkpoint folder")
