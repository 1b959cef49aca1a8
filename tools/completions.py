"""Write the completion scripts of bash, zsh and fish: `python tools/completions.py [FOLDER]`.

They are Typer's own, as `vltool --show-completion` prints them. Each asks vltool itself at every TAB,
so commands and options never date; only another Typer can change the scripts.
"""

from __future__ import annotations

import sys
from pathlib import Path

from typer.completion import get_completion_script

FOLDER = Path(__file__).parents[1] / "completions"
FILES = {"bash": "vltool.bash", "zsh": "_vltool", "fish": "vltool.fish"}


def write(folder: Path) -> None:
    """One file a shell, under the name by which that shell finds it."""
    for shell, name in FILES.items():
        script = get_completion_script(prog_name="vltool", complete_var="_VLTOOL_COMPLETE", shell=shell)
        (folder / name).write_text(f"{script}\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
