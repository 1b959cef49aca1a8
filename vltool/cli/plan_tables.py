"""What a recipe trains, and the memory that it takes, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from vltool.audit.memory_rules import Planned
    from vltool.audit.trainable import Trainable


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


def tower_table(recipe: str, counted: Trainable) -> Table:
    """Parameters that train, tower by tower, the sum last; ways of training that nothing takes have no column."""
    from rich import box
    from rich.table import Table

    ways = [("adapter", "adapter"), ("copies", "modules_to_save"), ("full", "in full"), ("carried", "carried")]
    ways = [(name, head) for name, head in ways if any(getattr(row, name) for row in counted.rows)]
    heads = ("trainable parameters", *(head for _, head in ways), "frozen")
    table = Table(*heads, box=box.SIMPLE_HEAD, title=recipe, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in counted.rows:
        if row.trainable + row.frozen:
            told = [getattr(row, name) for name, _ in ways] + [row.frozen]
            table.add_row(row.tower, *(f"{number:,}" if number else "" for number in told))
    table.add_section()
    sums = [sum(getattr(row, name) for row in counted.rows) for name, _ in ways] + [counted.frozen]
    table.add_row(f"{counted.total:,} ({counted.share:.2%})", *(f"{number:,}" for number in sums), style="bold")
    return table
