"""Write the pages of all rules and their index: `python tools/finding_pages.py [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

from vltool.audit.catalogue import GROUPS, RULES
from vltool.audit.finding import PAGES
from vltool.audit.pages import file_of_page, index

FOLDER = Path(__file__).parents[1] / PAGES


def write(folder: Path) -> None:
    """One page a rule and the index; pages of rules that are gone are taken away."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{rule.id}.md": file_of_page(rule) for rule in RULES.values()} | {"README.md": index(GROUPS)}
    for gone in {path.name for path in folder.glob("*.md")} - pages.keys():
        (folder / gone).unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
