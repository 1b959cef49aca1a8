"""Write into each shipped recipe's header the memory and time that are planned for it: `python tools/recipe_memory.py`.

The plan is `vltool check`'s, for Qwen3-VL-4B, rows as long as the recipe allows and one GPU, or as many as the header
says. An overlay is planned over the recipe that its header puts it over. A recipe that cannot be planned gets no line.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from shapes import write_shapes  # noqa: E402

from vltool.audit.memory_plan import GIB, plan_memory  # noqa: E402
from vltool.errors import InvalidInput  # noqa: E402
from vltool.recipe.validate import load_recipe  # noqa: E402
from vltool.run.plan import make_plan  # noqa: E402

RECIPES = ROOT / "recipes"
_BEGINS = "# Memory: "
_BLOCK = re.compile(rf"^{_BEGINS}.*\n(?:#   .*\n)*", re.MULTILINE)
_EXTENDS = re.compile(r"^#   extends: \[([\w, ]+)\]", re.MULTILINE)
_PROCESSES = re.compile(r"nproc_per_node: (\d+)")


def planned_lines(file: Path, base: Path, scratch: Path) -> str:
    """The lines of a recipe; empty where no memory can be planned.

    base: a checkpoint folder of the shape. scratch: a folder for an overlay's recipe and for records.
    """
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    over, count = _EXTENDS.search(header), _PROCESSES.search(header)
    processes = int(count[1]) if count else 1
    records = scratch / "records.jsonl"
    records.write_text("{}\n", encoding="utf-8")
    recipe = scratch / f"{file.stem}.yaml"
    recipe.write_text(
        f"extends: [{over[1] if over else file.stem}]\nlaunch: {{nproc_per_node: {processes}}}\n", encoding="utf-8"
    )
    env = {"VLTOOL_MODEL": str(base), "VLTOOL_TRAIN_JSONL": str(records), "VLTOOL_VAL_JSONL": str(records)}
    try:
        plan = make_plan(load_recipe(str(recipe), env=env), cwd=scratch, env={})
        memory = plan_memory(plan)
    except InvalidInput:
        return ""
    gpus = "one 80 GB GPU" if processes == 1 else f"each of {processes} GPUs"
    beneath = "" if over is None else f" over {over[1].split(',')[0]}"
    low, high = memory.time.seconds
    kd = plan.distillation
    sampling = ", sampling apart" if kd is not None and kd.sampling is not None else ""
    return (
        f"{_BEGINS}by the plan of vltool check{beneath}, {memory.needed / GIB:.0f} GiB of {gpus} for Qwen3-VL-4B\n"
        f"#   with rows of {memory.batch.tokens:,} tokens; a step of {memory.time.samples} records takes {low:.0f} to "
        f"{high:.0f} s on {'an H100' if processes == 1 else 'H100s'}{sampling}.\n"
    )


def with_lines(text: str, lines: str) -> str:
    """A recipe's text with these lines at the end of its header's first paragraph, in place of older ones."""
    text = _BLOCK.sub("", text)
    before, _, after = text.partition("\n#\n")  # below the title
    paragraph, _, rest = after.partition("\n#\n")
    return f"{before}\n#\n{paragraph}\n{lines}#\n{rest}"


def main(folder: Path = RECIPES) -> None:
    """Write all of them into the recipes of a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        base = write_shapes(Path(scratch) / "base")
        for file in sorted(RECIPES.glob("*.yaml")):
            text = with_lines(file.read_text(encoding="utf-8"), planned_lines(file, base, Path(scratch)))
            (folder / file.name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
