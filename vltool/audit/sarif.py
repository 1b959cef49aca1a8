"""Findings as SARIF 2.1.0, the form in which code hosts show them beside the lines that they are about.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/sarif-v2.1.0-os.html, and what GitHub reads of it:
https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vltool.audit.finding import Finding, Rule
from vltool.audit.pages import page
from vltool.errors import InvalidInput, Where
from vltool.recipe.resolve import file_of

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
ROOT = "%SRCROOT%"
"""How SARIF calls the folder that relative addresses begin at."""
FINGERPRINT = "vltoolFinding/v1"
"""Ours: `primaryLocationLineHash` is for GitHub's upload, which hashes the file itself and warns of any other value."""


def to_sarif(
    findings: Iterable[Finding], rules: Mapping[str, Rule], version: str, *, target: str, root: Path, category: str
) -> dict[str, Any]:
    """A log of one run of vltool.

    rules: by id, those of all findings among them. target: where findings stand that have no place. root: the
    folder that the addresses of files below it begin at. category: tells this log from others of the same commit.
    """
    order = {rule: at for at, rule in enumerate(rules)}
    seen: Counter[str] = Counter()
    results = [_result(finding, order, Where(target), root, seen) for finding in findings]
    driver = {"name": "vltool", "semanticVersion": version, "rules": [_rule(rule) for rule in rules.values()]}
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"{category}/"},
        # As in the messages of a recipe: a letter outside of the BMP is one column.
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def check_file(file: Path) -> None:
    """Raise InvalidInput for a path that no log can be written to."""
    if file.is_dir():
        raise InvalidInput(f"--sarif: {file} is a folder", "name a file in it")
    if not file.parent.is_dir():
        raise InvalidInput(f"--sarif: no such folder: {file.parent}", "make it, or write elsewhere")
    if not os.access(file.parent, os.W_OK):
        raise InvalidInput(f"--sarif: {file.parent} cannot be written to", "write elsewhere")


def write_sarif(file: Path, log: Mapping[str, Any]) -> None:
    """Write a log beside the file and rename it, so that no reader meets half of it."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _rule(rule: Rule) -> dict[str, Any]:
    described = {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.id.split("-")),
        "shortDescription": {"text": f"{rule.means[0].upper()}{rule.means[1:]}."},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.why}\n\n{rule.remedy}", "markdown": page(rule)},
        "defaultConfiguration": {"level": rule.severity},
        "properties": {"tags": [rule.id.partition("-")[0]], "problem.severity": _PROBLEM[rule.severity]},
    }
    return described | ({"helpUri": rule.source} if rule.source else {})


_PROBLEM = {"error": "error", "warning": "warning", "note": "recommendation"}
"""GitHub's words."""


def _result(
    finding: Finding, order: Mapping[str, int], target: Where, root: Path, seen: Counter[str]
) -> dict[str, Any]:
    where = finding.where or target
    artifact = _artifact(where.file, root)
    region = {"startLine": where.line or 1} | ({"startColumn": where.column} if where.column else {})
    # Of words, not of the line's number, which changes with every line above it.
    same = "\0".join((finding.id, artifact["uri"], finding.evidence or finding.what))
    mark = hashlib.blake2b(same.encode(errors="replace"), digest_size=8).hexdigest()
    seen[mark] += 1
    return {
        "ruleId": finding.id,
        "ruleIndex": order[finding.id],
        "level": finding.severity,
        "message": {"text": _lines(finding.what, finding.remedy)},
        "locations": [{"physicalLocation": {"artifactLocation": artifact, "region": region}}],
        "partialFingerprints": {FINGERPRINT: f"{mark}:{seen[mark]}"},
    }


def _lines(*parts: str) -> str:
    return "\n".join(filter(None, parts))


def _artifact(file: str, root: Path) -> dict[str, str]:
    """The address of a file: relative to the root where it lies below that, as a shipped recipe may not."""
    path = Path(os.path.normpath(root.absolute() / file_of(file)))
    try:
        return {"uri": quote(os.fsencode(path.relative_to(root.absolute()))), "uriBaseId": ROOT}
    except ValueError:
        return {"uri": path.as_uri()}
