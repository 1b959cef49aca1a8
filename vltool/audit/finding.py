"""Findings: what an audit has to say, how bad it is, where, by what evidence, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vltool.errors import InvalidInput, Problem, Where, nearest

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The worst first."""
PAGES = "docs/findings"
"""Folder of the rules' pages, from the root of the repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What findings of one id mean; its page in the docs is made from this."""

    id: str
    """Lower case words, the first of them what is looked at: record-size, ckpt-shape."""
    severity: Severity
    """The worst that it reports."""
    means: str
    """One line, without a capital and a full stop: what was found."""
    why: str
    """What comes of it if nothing is done: sentences."""
    remedy: str
    """What to do: sentences."""
    covers: str = ""
    """The row of the operators' health checks, troubleshooting or FAQ that it stands for; several between "; "."""
    source: str = ""
    """Address of what the rule was learnt from."""

    @property
    def page(self) -> str:
        """Where its page is, from the root of the repository."""
        return page_of(self.id)

    def finds(
        self, what: str, *, where: Where | None = None, evidence: str = "", severity: Severity | None = None
    ) -> Finding:
        """A finding of this rule, by default of its severity and with its source for evidence."""
        return Finding(
            id=self.id,
            severity=severity or self.severity,
            what=what,
            where=where,
            evidence=evidence or self.source,
            remedy=self.remedy,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a rule found."""

    id: str
    """The rule's; it stays the same from version to version, so that scripts can choose by it."""
    severity: Severity
    what: str
    where: Where | None = None
    evidence: str = ""
    """What it was seen by, such as the beginning of the record."""
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """The finding as a flat JSON object; what is not known is null."""
        where = self.where or Where("")
        place = {"file": where.file or None, "line": where.line, "column": where.column}
        told = {"what": self.what, "evidence": self.evidence or None, "remedy": self.remedy or None}
        return {"id": self.id, "severity": self.severity, **told, **place, "docs": page_of(self.id)}


def page_of(rule: str) -> str:
    """Where the page of a rule is, from the root of the repository."""
    return f"{PAGES}/{rule}.md"


def by_id(rules: Iterable[Rule]) -> dict[str, Rule]:
    """Rules by their ids, of which there is one each."""
    found: dict[str, Rule] = {}
    for rule in rules:
        assert rule.id not in found, f"two rules have the id {rule.id}"
        found[rule.id] = rule
    return found


def known_rule(rule: str, known: Collection[str]) -> str:
    """The id itself. Raises InvalidInput, with the nearest that there is, for one that no rule has."""
    if rule not in known:
        raise InvalidInput(_unknown(rule, known))
    return rule


def _unknown(rule: str, known: Collection[str]) -> Problem:
    close = nearest(rule, known)
    do = f"did you mean {close}?" if close else f"known are {', '.join(sorted(known))}"
    return Problem(f"no rule has the id {rule}", do)


def arranged(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, each rule's together, in the order of files and lines."""
    return sorted(
        findings,
        key=lambda finding: (
            SEVERITIES.index(finding.severity), finding.id, finding.where.file if finding.where else "",
            (finding.where.line or 0) if finding.where else 0,
        ),
    )  # fmt: skip


def chosen(
    findings: Iterable[Finding], *, known: Collection[str], only: Sequence[str] = (), ignore: Sequence[str] = ()
) -> list[Finding]:
    """The findings of the rules in `only` (of all, where it is empty), but for those in `ignore`.

    known: ids of all rules. Raises InvalidInput for an id that no rule has.
    """
    if unknown := [name for name in (*only, *ignore) if name not in known]:
        raise InvalidInput(_unknown(name, known) for name in dict.fromkeys(unknown))
    return [finding for finding in findings if (not only or finding.id in only) and finding.id not in ignore]


def failed(findings: Iterable[Finding], *, strict: bool) -> bool:
    """Whether there is an error among them, or, where `strict`, a warning."""
    bad = {"error", "warning"} if strict else {"error"}
    return any(finding.severity in bad for finding in findings)


def by_severity(findings: Iterable[Finding]) -> dict[Severity, int]:
    """How many there are of each severity, the worst first."""
    counted = Counter(finding.severity for finding in findings)
    return {severity: counted[severity] for severity in SEVERITIES}
