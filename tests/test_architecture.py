"""The house: which room may import which, what a start-up must not load, and who alone imports ms-swift."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vltool"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room may import itself and the rooms named here, never one above it.
BELOW = {
    "errors": set(),
    "recipe": {"errors"},
    "checkpoint": {"recipe", "errors"},
    "data": {"recipe", "errors"},
    "run": {"data", "checkpoint", "recipe", "errors"},
    "audit": {"run", "data", "checkpoint", "recipe", "errors"},
    "training": {"run", "data", "checkpoint", "recipe", "errors"},
    "cli": {"audit", "run", "data", "checkpoint", "recipe", "errors"},
}
# The one door to `training`, opened by name inside functions.
DOOR = {("vltool.run.launch", f"vltool.training.{name}") for name in ("worker", "tiny", "deep")}
HEAVY = {
    "torch",
    "torchvision",
    "triton",
    "transformers",
    "peft",
    "swift",
    "trl",
    "accelerate",
    "deepspeed",
    "safetensors",
}
THIRD_PARTY = {
    "errors": set(),
    "recipe": {"ruamel", "msgspec"},
    "checkpoint": {"msgspec", "numpy"},
    "data": {"msgspec", "numpy", "PIL", "tokenizers", "cv2", "shapely", "zstandard"},
    "run": {"msgspec"},
    "audit": {"msgspec", "jinja2"},
    "cli": {"typer", "rich"},
    "training": {*HEAVY, "msgspec", "numpy", "tokenizers"},
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names if is_module(f"{node.module}.{alias.name}")}
    return found


def is_module(name: str) -> bool:
    return name.startswith("vltool.") and PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py").is_file()


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def test_there_are_modules():
    assert len(MODULES) > 30


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_downwards(path):
    module, room = name_of(path), room_of(name_of(path))
    if room in ("", "__main__"):
        return
    for imported in imports_of(path):
        if not imported.startswith("vltool."):
            continue
        other = room_of(imported)
        if (module, imported) in DOOR or (module == "vltool.run.launch" and imported == "vltool.training"):
            continue
        assert other == room or other in BELOW[room], f"{module} imports {imported}: {room} must not know {other}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_keep_to_their_libraries(path):
    room = room_of(name_of(path))
    if room in ("", "__main__"):
        return
    roots = {imported.split(".")[0] for imported in imports_of(path)}
    foreign = roots - set(sys.stdlib_module_names) - {"vltool", "__future__"} - THIRD_PARTY[room]
    assert not foreign, f"{name_of(path)} imports {sorted(foreign)}"


def test_one_module_alone_imports_ms_swift():
    importers = [name_of(path) for path in MODULES if any(i.split(".")[0] == "swift" for i in imports_of(path))]
    assert importers == ["vltool.training.swift_bridge"]


def test_packages_re_export_nothing():
    for path in MODULES:
        if path.name == "__init__.py" and path.parent != PACKAGE:
            assert path.read_text(encoding="utf-8").strip() == "", f"{path} should be empty"


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(' '.join(m for m in sys.modules if '.' not in m))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in ("train", "check", "fuse", "inspect-ckpt", "smoke")), ["--version"]],
)
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys, contextlib, io\n"
        f"sys.argv = ['vltool', *{arguments!r}]\n"
        "from vltool.cli.app import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()"
    )
    assert not loaded_by(code) & (HEAVY | {"numpy", "PIL", "msgspec", "ruamel", "tokenizers"})


def test_a_recipe_is_planned_without_torch():
    code = "import vltool.recipe.validate, vltool.run.plan, vltool.run.launch, vltool.audit.run_rules"
    assert not loaded_by(code) & HEAVY


def test_the_architecture_test_would_notice(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import vltool.cli.app\n", encoding="utf-8")
    assert imports_of(bad) == {"vltool.cli.app"}
