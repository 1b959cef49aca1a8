"""The memory plan as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from vltool.audit.memory_rules import Planned


def memory_table(one: Planned) -> Table:
    """The rows of a plan that was made, the sum last."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    assert one.memory is not None, "a table of no plan"
    table = Table("memory of each GPU", "GiB", "", box=box.SIMPLE_HEAD, title=one.recipe, title_justify="left")
    table.columns[1].justify = "right"
    *parts, total = one.memory.rows()
    for row in parts:
        table.add_row(row.name, f"{row.bytes / 2**30:.2f}", Text(row.note, style="dim"))
    table.add_section()
    table.add_row(total.name, f"{total.bytes / 2**30:.2f}", Text(total.note, style="dim"), style="bold")
    return table
