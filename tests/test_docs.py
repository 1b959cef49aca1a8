"""Generated documents are what their tools write."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_pages_of_findings_are_what_the_tool_writes(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools" / "finding_pages.py", tmp_path], check=True)
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert len(written) > 50
    kept = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "findings").iterdir()}
    assert written == kept, "run tools/finding_pages.py"


def test_the_plot_of_beta_is_drawn_from_the_loss_as_it_is(tmp_path):
    pytest.importorskip("torch")
    tool = runpy.run_path(str(ROOT / "tools" / "beta_plot.py"))
    tool["main"].__globals__["OUT"] = tmp_path / "docs" / "beta.svg"
    tool["main"]()
    assert (tmp_path / "docs" / "beta.svg").read_text() == (ROOT / "docs" / "beta.svg").read_text()
