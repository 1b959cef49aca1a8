"""The command line, run in this process."""

from __future__ import annotations

import os
import sys

import pytest

from vltool.cli.app import main


@pytest.fixture
def vltool(capsys, monkeypatch, tmp_path):
    """Runs the command line in this process and an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("VLTOOL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vltool", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return run
