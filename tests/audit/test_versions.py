"""Versions are compared as pip compares them."""

from __future__ import annotations

import pytest

from vltool.audit.versions import version_key, within

ORDERED = ["0.9", "1.0.dev3", "1.0a1", "1.0rc1", "1.0", "1.0.post1", "1.0.1", "1.9", "1.10", "2.0"]


def test_versions_are_ordered_by_number_and_stage():
    keys = [version_key(version) for version in ORDERED]
    assert None not in keys
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("version", "specifier", "holds"),
    [
        ("2.9.1+cu128", ">=2.9,<2.10", True),
        ("2.10.0", ">=2.9,<2.10", False),
        ("2.8.0", ">=2.9", False),
        ("5.20.0rc1", "<5.20", False),
        ("5.19.9", "<5.20.0,>=4.33", True),
        ("3.8.5", "~=3.8.0", True),
        ("3.9.0", "~=3.8.0", False),
        ("3.9", "~=3.8", True),
        ("4.0", "~=3.8", False),
        ("2.14.1+cpu", "==2.14.1", True),
        ("2.14", "==2.14.0", True),
        ("2.14.1", "==2.14.*", True),
        ("2.15", "==2.14.*", False),
        ("2.15", "!=2.14.*", True),
        ("1.0", "!=1.0", False),
        ("1.0.post1", ">1.0.0", False),
        ("1.0", "<=1.0", True),
        ("1.0", "", True),
    ],
)
def test_a_version_lies_in_a_range_or_does_not(version, specifier, holds):
    assert within(version, specifier) is holds


def test_what_is_not_understood_is_held_against_nobody():
    assert within("unknown", ">=1")
    assert within("1.0", "@ file:///somewhere")
    assert within("1.0", ">=newest")


def test_it_agrees_with_packaging():
    packaging = pytest.importorskip("packaging.specifiers")
    versions = [*ORDERED, "2.9.1", "2.10.0", "3.8.2"]
    for operator in ("==", "!=", "<=", ">=", "<", ">"):
        for wanted in ("1.0", "1.10", "2.9.1", "0.9.0"):
            specifier = packaging.SpecifierSet(operator + wanted, prereleases=True)
            for version in versions:
                assert within(version, operator + wanted) == specifier.contains(version), (version, operator, wanted)
