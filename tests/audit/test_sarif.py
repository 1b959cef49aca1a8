"""SARIF: valid by its schema, and all that code hosts read of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vltool.audit.catalogue import RULES
from vltool.audit.finding import Finding
from vltool.audit.sarif import FINGERPRINT, check_file, to_sarif, write_sarif
from vltool.errors import InvalidInput, Where
from vltool.recipe.resolve import shipped_recipes


def finding(where=None, **changes):
    told = {"id": "record-size", "severity": "error", "what": "60 × 32", "remedy": "mend it", "where": where}
    return Finding(**told | changes)


def log(*findings, root="/repo", target="mine.yaml"):
    return to_sarif(findings, RULES, "1.2.3", target=target, root=Path(root), category="vltool check")


def result(*findings, **changes):
    return log(*findings, **changes)["runs"][0]["results"][0]


def address(where, **changes):
    return result(finding(where), **changes)["locations"][0]["physicalLocation"]["artifactLocation"]


def test_a_log_has_all_that_the_schema_requires():
    whole = log(finding(Where("a.jsonl", 3, 5)), finding(id="recipe-note", severity="note", where=None))
    assert whole["version"] == "2.1.0"
    assert whole["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = whole["runs"]
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["semanticVersion"]) == ("vltool", "1.2.3")
    assert [rule["id"] for rule in driver["rules"]] == list(RULES)
    assert run["columnKind"] == "unicodeCodePoints"
    assert run["automationDetails"] == {"id": "vltool check/"}
    for one in run["results"]:
        assert driver["rules"][one["ruleIndex"]]["id"] == one["ruleId"]
        assert one["level"] in ("error", "warning", "note")
        assert one["message"]["text"]
        (place,) = one["locations"]
        assert place["physicalLocation"]["region"]["startLine"] >= 1
        assert place["physicalLocation"]["artifactLocation"]["uri"]
        assert one["partialFingerprints"][FINGERPRINT]


def test_every_rule_has_its_help():
    for rule in log()["runs"][0]["tool"]["driver"]["rules"]:
        known = RULES[rule["id"]]
        assert rule["name"].isalnum()
        assert rule["shortDescription"]["text"].endswith(".")
        assert rule["fullDescription"]["text"] == known.why
        assert known.remedy in rule["help"]["text"]
        assert rule["help"]["markdown"].startswith(f"# {known.id}")
        assert rule["defaultConfiguration"] == {"level": known.severity}
        assert rule["properties"]["problem.severity"] in ("error", "warning", "recommendation")
        assert rule.get("helpUri", "https://").startswith("https://")


def test_a_result_stands_where_the_finding_does():
    region = result(finding(Where("a.jsonl", 3, 5)))["locations"][0]["physicalLocation"]["region"]
    assert region == {"startLine": 3, "startColumn": 5}
    assert result(finding(Where("a.jsonl", 3, 5)))["message"] == {"text": "60 × 32\nmend it"}


@pytest.mark.parametrize(
    ("file", "uri", "relative"),
    [
        ("data/a.jsonl", "data/a.jsonl", True),
        ("./data/../a.jsonl", "a.jsonl", True),
        ("/repo/a b.jsonl", "a%20b.jsonl", True),
        ("ü#?%.jsonl", "%C3%BC%23%3F%25.jsonl", True),
        ("../a.jsonl", "file:///a.jsonl", False),
        ("/data/a.jsonl", "file:///data/a.jsonl", False),
        ("\udcff.jsonl", "%FF.jsonl", True),
    ],
)
def test_addresses_are_relative_to_the_root_where_they_can_be(file, uri, relative):
    assert address(Where(file)) == {"uri": uri} | ({"uriBaseId": "%SRCROOT%"} if relative else {})


def test_a_shipped_recipe_is_not_taken_for_one_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = address(Where("recipes/base.yaml", 1), root=tmp_path)
    assert shipped == {"uri": shipped_recipes()["base"].as_uri()}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "base.yaml").touch()
    assert address(Where("recipes/base.yaml", 1), root=tmp_path)["uri"] == "recipes/base.yaml"


def test_what_has_no_place_stands_at_the_target():
    one = result(finding(None), target="run/checkpoint-7")
    assert one["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "run/checkpoint-7", "uriBaseId": "%SRCROOT%"}, "region": {"startLine": 1},
    }  # fmt: skip


def test_fingerprints_stay_when_lines_move_and_differ_otherwise():
    def marks(*findings):
        return [one["partialFingerprints"][FINGERPRINT] for one in log(*findings)["runs"][0]["results"]]

    here = finding(Where("a.jsonl", 3), evidence='{"images"')
    (mark,) = marks(here)
    assert marks(finding(Where("a.jsonl", 9), evidence='{"images"')) == [mark]
    others = [
        finding(Where("b.jsonl", 3), evidence='{"images"'), finding(Where("a.jsonl", 3), evidence="{"),
        finding(Where("a.jsonl", 3), evidence='{"images"', id="record-field"),
    ]  # fmt: skip
    assert len(set(marks(here, here, *others))) == 5


def test_a_log_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "log.sarif"
    whole = log(finding(Where("\udcff.jsonl", 1), what="bad \udcff ü"))
    write_sarif(file, whole)
    assert json.loads(file.read_text()) == whole
    with pytest.raises(TypeError):
        write_sarif(file, {"runs": object()})
    assert json.loads(file.read_text()) == whole
    assert list(tmp_path.iterdir()) == [file]


def test_a_log_needs_a_file_to_be_written_to(tmp_path):
    check_file(tmp_path / "log.sarif")
    for path, told in ((tmp_path, "is a folder"), (tmp_path / "gone" / "log.sarif", "no such folder")):
        with pytest.raises(InvalidInput, match=told):
            check_file(path)
