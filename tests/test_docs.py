"""Generated documents are what their tools write."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_plot_of_beta_is_drawn_from_the_loss_as_it_is(tmp_path):
    pytest.importorskip("torch")
    tool = runpy.run_path(str(ROOT / "tools" / "beta_plot.py"))
    tool["main"].__globals__["OUT"] = tmp_path / "docs" / "beta.svg"
    tool["main"]()
    assert (tmp_path / "docs" / "beta.svg").read_text() == (ROOT / "docs" / "beta.svg").read_text()
