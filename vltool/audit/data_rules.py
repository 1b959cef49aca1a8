"""Findings on records: each file is scanned once, as training would read it, with every image's header."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vltool.audit.finding import Finding, Severity
from vltool.audit.record_facts import RecordFacts
from vltool.audit.targets import Records
from vltool.data.fusion import plan_mixture
from vltool.data.histogram import Histogram
from vltool.data.index import JsonlIndex
from vltool.data.scan import Scan, scan
from vltool.errors import BadContent, InvalidInput, Problem, Where
from vltool.recipe.fusion import Fusion
from vltool.run.preview import Part
from vltool.run.variants import variants_of

LONGEST_EVIDENCE = 120
"""Characters of a record that are shown."""
BINS = 32
"""Parts of a histogram of lengths in JSON."""
BARS = 20
"""Of one in a summary."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A file of records and what was found in it."""

    records: Records
    scan: Scan | None
    """None for a file without a record."""
    findings: list[Finding]
    facts: RecordFacts | None = None
    """Of its records, for `judge_records`."""

    @property
    def usable(self) -> int:
        """Records that training takes, once those are mended that it does not leave out."""
        if self.scan is None:
            return 0
        return self.scan.records - (len(self.scan.bad) if self.records.skips_bad else 0)

    def summary(self) -> str:
        """How many records, how many of them are bad, the longest; with a tokenizer, a line of their lengths."""
        name = f"{self.records.jsonl}{f' ({self.records.split})' if self.records.split else ''}"
        if self.scan is None:
            return f"{name}: no record"
        parts = [f"{self.scan.records:,} record{'s' * (self.scan.records != 1)}"]
        parts.append(f"{len(self.scan.bad):,} with problems" if self.scan.bad else "all good")
        if self.scan.longest is not None:
            tokens, where = self.scan.longest
            parts.append(f"the longest {tokens:,} of {self.records.max_length:,} tokens (line {where.line})")
        return "\n  ".join(filter(None, (f"{name}: {', '.join(parts)}", self._lengths())))

    def _lengths(self) -> str:
        """A histogram of tokens up to the limit, or the longest record; within 80 columns."""
        assert self.scan is not None
        lengths = self.scan.lengths
        if not lengths.count:
            return ""
        end = max(self.records.max_length, lengths.most)
        middle, most = lengths.percentile(50), lengths.percentile(99)
        shares = f"half ≤ {middle:,}, 99 % ≤ {most:,}, {self.scan.supervised / lengths.total:.1%} learnt"
        return f"0 {lengths.bars(BARS, end=end)} {end:,}: {shares}"

    def to_json(self) -> dict[str, Any]:
        """The file's numbers; what is not known is null."""
        seen, longest = self.scan, self.scan.longest if self.scan else None
        return {
            "file": str(self.records.jsonl),
            "split": self.records.split,
            "records": seen.records if seen else 0,
            "bad": len(seen.bad) if seen else 0,
            "too_long": len(seen.too_long) if seen else 0,
            "problems": seen.problem_count if seen else 0,
            "max_length": self.records.max_length if self.records.counter else None,
            "longest": {"tokens": longest[0], "line": longest[1].line} if longest else None,
            "lengths": _json(seen.lengths, max(self.records.max_length, seen.lengths.most))
            if longest and seen
            else None,
            "answers": _json(seen.answers, seen.answers.most) if longest and seen else None,
            "supervised": seen.supervised / seen.lengths.total if longest and seen else None,
        }

    def part(self, findings: Sequence[Finding], *, variants: int, epoch: int) -> Part | None:
        """The file as a preview shows it, with those of the findings that lie in it; None without a record.

        variants: how many augmented ones of each training record. epoch: samples of an epoch of its run.
        """
        if self.scan is None:
            return None
        at: dict[int, list[Finding]] = {}
        for finding in findings:
            if finding.where and finding.where.line and finding.where.file == str(self.records.jsonl):
                at.setdefault(finding.where.line, []).append(finding)
        records = self.records
        drawn = None
        if records.plan is not None and records.split == "train":
            drawn = variants_of(records.plan, records.policy, epoch=epoch, count=variants)
        return Part(
            jsonl=records.jsonl,
            label=" · ".join(filter(None, (records.split, records.policy.dataset))),
            reading=records.reading,
            counter=records.counter,
            max_length=records.max_length,
            learnt=records.learnt,
            records=self.scan.records,
            bad=self.scan.bad,
            remarks=at,
            variants=drawn,
        )


def _json(lengths: Histogram, end: int) -> dict[str, Any]:
    """Numbers of a histogram; its bins are equal parts of 0…end."""
    percentiles = {f"p{percent}": lengths.percentile(percent) for percent in (50, 90, 99)}
    return {"mean": lengths.mean, **percentiles, "max": lengths.most, "end": end, "bins": lengths.bins(BINS, end=end)}


def parts_of(judged: Sequence[Judged], findings: Sequence[Finding], *, variants: int) -> list[Part]:
    """What a preview shows of judged files, as for `Judged.part`."""
    parts = []
    for one in judged:
        together = [each for each in judged if each.records.plan is one.records.plan and each.records.split == "train"]
        epoch = sum(each.usable for each in together)
        if one.records.plan is not None and (fusion := one.records.fusion) is not None:
            with suppress(InvalidInput):  # a finding, of `judge_mixtures`
                epoch = len(plan_mixture(fusion, [each.usable for each in together], seed=0))
        if (part := one.part(findings, variants=variants, epoch=epoch)) is not None:
            parts.append(part)
    return parts


def judge_mixtures(judged: Sequence[Judged]) -> list[Finding]:
    """What there is to say of the mixtures that judged files are part of, now that their records are counted."""
    findings: list[Finding] = []
    for fusion in _distinct(one.records.fusion for one in judged):
        parts = [one for one in judged if one.records.fusion is fusion and one.records.split == "train"]
        notes: Sequence[Problem] = ()
        try:
            notes = plan_mixture(fusion, [one.usable for one in parts], seed=0).notes[len(fusion.notes) :]
        except InvalidInput as error:
            findings += [_finding("fusion-records", "error", problem) for problem in error.problems]
        findings += [_finding("fusion-note", "note", problem) for problem in fusion.notes]
        findings += [_finding("fusion-ratio", "warning", problem) for problem in notes]
    return findings


def _distinct(fusions: Iterable[Fusion | None]) -> list[Fusion]:
    return list({id(fusion): fusion for fusion in fusions if fusion is not None}.values())


def _finding(rule: str, severity: Severity, problem: Problem) -> Finding:
    return Finding(id=rule, severity=severity, what=problem.what, where=problem.where, remedy=problem.do)


def judge(records: Records, *, progress: Callable[[int, int], None] | None = None) -> Judged:
    """Scan a file and turn its problems into findings.

    Those of single records are errors, or warnings where training leaves bad records out. Raises InvalidInput
    for a file that is absent or cannot be read.
    """
    place = Where(str(records.jsonl))
    try:
        facts = RecordFacts(records.jsonl, root=records.reading["root"])
        seen = scan(
            records.jsonl,
            **records.reading,
            counter=records.counter,
            max_length=records.max_length,
            check_images=True,
            learnt=records.learnt,
            each=facts.add,
            progress=progress,
        )
    except BadContent as error:
        return Judged(
            records,
            None,
            [
                Finding(id="records-none", severity="error", what=problem.what, where=place, remedy=problem.do)
                for problem in error.problems
            ],
        )
    severity: Severity = "warning" if records.skips_bad else "error"
    evidence = _evidence(records, seen)
    findings = [
        Finding(
            id=problem.id,
            severity=severity,
            what=problem.what,
            where=problem.where,
            evidence=evidence.get((problem.where or place).line or 0, ""),
            remedy=problem.do,
        )
        for problem in seen.problems
    ]
    if more := seen.problem_count - len(seen.problems):
        what = f"{more} more problems were counted and are not listed"
        remedy = "mend those that are, and check again"
        findings.append(Finding(id="records-unlisted", severity=severity, what=what, where=place, remedy=remedy))
    if len(seen.bad) == seen.records:
        what = f"not one of {seen.records} records can be used"
        findings.append(Finding(id="records-unusable", severity="error", what=what, where=place))
    return Judged(records, seen, findings, facts)


def _evidence(records: Records, seen: Scan) -> dict[int, str]:
    """Line -> the beginning of the record there, for the lines that have a problem."""
    lines = {problem.where.line for problem in seen.problems if problem.where and problem.where.line}
    if not lines:
        return {}
    index = JsonlIndex(records.jsonl)
    shown: dict[int, str] = {}
    for line in lines:
        # Blank lines count as lines: a record stands at its position or below.
        position = bisect_left(range(len(index)), line, key=lambda at: index.where(at).line or 0)
        text = index.read(position)[0][: 4 * LONGEST_EVIDENCE].decode(errors="replace")
        shown[line] = text if len(text) <= LONGEST_EVIDENCE else text[: LONGEST_EVIDENCE - 1] + "…"
    return shown
