"""The catalogue: every rule is there once, says what its page needs, and stands for rows that the playbook has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vltool.audit.catalogue import GROUPS, RULES
from vltool.audit.finding import SEVERITIES
from vltool.audit.pages import ROWS, covered, index, page

PACKAGE = Path(__file__).parents[2] / "vltool"
KINDS = (
    "base|batch|best|chat|ckpt|deep|expect|fusion|host|kd|loader|memory|path|precision|rate|recipe|record|records|"
    "target|token|tokenizers|tuner"
)
IDS = rf"(?:{KINDS})-[a-z0-9]+(?:-[a-z0-9]+)*"


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_a_rule_says_what_its_page_needs(rule):
    assert re.fullmatch(IDS, rule.id)
    assert rule.severity in SEVERITIES
    assert not rule.means.endswith(".")
    for text in (rule.why, rule.remedy):
        assert text.endswith((".", "`."))
    assert rule.source == "" or rule.source.startswith("https://")
    for told in (f"# {rule.id}", rule.why, rule.remedy, rule.source):
        assert told in page(rule)


def ids_in(folder: Path, *, but: str) -> set[str]:
    """Whatever text in the modules of a folder looks like an id."""
    said = re.compile(f'"({IDS})"')
    return {
        found
        for path in folder.rglob("*.py")
        if not path.name.endswith(but)
        for found in said.findall(path.read_text(encoding="utf-8"))
    }


def test_the_catalogue_is_what_modules_report():
    assert ids_in(PACKAGE, but="_catalogue.py") == RULES.keys()


def test_every_rule_is_named_by_a_test():
    assert RULES.keys() - ids_in(Path(__file__).parents[1], but="test_catalogue.py") == set()


def test_every_row_of_the_playbook_has_a_rule_or_what_shows_it():
    found = covered(list(RULES.values()))
    assert [row.name for row in ROWS if not found[row.name] and not row.beside] == []
    assert [row.name.partition(":")[0] for row in ROWS].count("health check") == 6
    assert all(found[row.name] for row in ROWS if row.name.startswith("health check"))
    names = {row.name for row in ROWS}
    other = {name for name in found if name not in names and not name.startswith(("FAQ: ", "Monitoring Checklist: "))}
    assert other == set(), "rows are called as in ROWS"


def test_the_index_lists_every_rule_and_every_row():
    text = index(GROUPS)
    assert all(f"| [{rule}]({rule}.md) |" in text for rule in RULES)
    assert all(f"| {row.name} |" in text for row in ROWS)
