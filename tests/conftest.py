"""A tiny checkpoint, small drawn pictures, runs of shipped recipes on them, and the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# As `vltool train` has it, and before anything imports torch: on two cores, threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU Triton's kernels are interpreted; it asks when it is first imported, which others do too.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SIDES_PX = ((64, 96), (96, 64), (64, 64), (128, 64))
WORDS = ("red square", "blue bar: thin", "green dot, round", "a long yellow stripe across", "box", "grey thing at left")


def write_records(folder: Path, count: int = 8) -> Path:
    """`count` drawn pictures with one to four objects each, so that label counts differ."""
    from PIL import Image, ImageDraw

    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        width, height = SIDES_PX[number % len(SIDES_PX)]
        image = Image.new("RGB", (width, height), (40 * number % 256, 90, 160))
        draw = ImageDraw.Draw(image)
        objects: list[dict[str, Any]] = []
        for place in range(1 + number % 4):
            x, y = 4 + 9 * place, 6 + 7 * place
            draw.rectangle((x, y, x + 20, y + 14), fill=(255, 30 * place, 0))
            geometry: dict[str, Any] = [
                {"bbox_2d": [x, y, x + 20, y + 14]},
                {"poly": [x, y, x + 20, y, x + 10, y + 14]},
                {"line": [x, y, x + 20, y + 14]},
            ][(number + place) % 3]
            objects.append({"desc": WORDS[(number + place) % len(WORDS)]} | geometry)
        image.save(folder / "images" / f"{number}.png")
        record = {"images": [f"images/{number}.png"], "width": width, "height": height, "objects": objects}
        lines.append(json.dumps(record | {"summary": f"picture {number} with {len(objects)} objects"}))
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing")


def pytest_collection_modifyitems(items):
    """The longest file first, so that no process ends up waiting for the one that began it last."""
    items.sort(key=lambda item: item.path.name != "test_ranks.py")


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Qwen3-VL checkpoint."""
    pytest.importorskip("torch")
    from vltool.run.launch import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny") / "qwen3-vl", [*WORDS, '{"object_1": {"desc": "bbox_2d"}}'])


@pytest.fixture(scope="session")
def real_ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the released models' token ids and vocabulary, where the head makes every step slow."""
    pytest.importorskip("torch")
    from vltool.run.launch import make_tiny

    return make_tiny(tmp_path_factory.mktemp("real_ids") / "qwen3-vl", WORDS, real_ids=True)


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL of eight drawn pictures."""
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture
def overlay(tmp_path: Path, tiny: Path, records: Path) -> Callable[..., Path]:
    """Writes a recipe that extends a shipped one, on the tiny checkpoint, in fp32, three steps long."""

    def write(extends: str | list[str], name: str = "mine", **sections: dict[str, Any]) -> Path:
        document: dict[str, Any] = {
            "extends": extends,
            "model": {"model": str(tiny), "torch_dtype": "float32"},
            "data": {"dataloader_num_workers": 0},
            "tuner": {"resume_from_checkpoint": None},
            "training": {
                "bf16": False, "learning_rate": 3e-3, "max_steps": 3, "logging_steps": 1, "save_steps": 3,
                "eval_steps": 3, "effective_batch_size": 4, "per_device_train_batch_size": 2,
                "output_dir": str(tmp_path / "run"),
            },
            "custom": {"train_jsonl": str(records), "val_jsonl": str(records), "val_sample_limit": 4},
        }  # fmt: skip
        for section, values in sections.items():
            document[section] = document.get(section, {}) | values
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    return write


@pytest.fixture
def vltool(capsys, monkeypatch, tmp_path):
    """Runs the command line in this process and an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("VLTOOL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")

    from vltool.cli.app import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vltool", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return run


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, int | float]] = []
        self.table: list[Any] = []
        self.warnings: list[Any] = []

    def stage(self, text: str) -> None: ...

    def towers(self, rows: Any) -> None:
        self.table = list(rows)

    def carried(self, checkpoint: str, rows: Any) -> None:
        self.carried_rows = list(rows)

    def progress(self, what: str, done: int, total: int) -> None: ...

    def row(self, row: dict[str, int | float]) -> None:
        self.rows.append(row)

    def warn(self, problem: Any) -> None:
        self.warnings.append(problem)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Runs a recipe in this process as `vltool train` does; returns the plan, rows, table and outcome."""

    def run(recipe: Path, *, probe: bool = False) -> SimpleNamespace:
        from vltool.audit.preflight import audited
        from vltool.recipe.validate import load_recipe
        from vltool.run import launch
        from vltool.run.plan import make_plan

        reporter = Silent()
        resolved = load_recipe(str(recipe))
        plan = audited(make_plan(resolved, cwd=tmp_path, probe=probe), reporter)
        # A run in this process leaves it one GPU; the next may want two.
        environment = dict(os.environ)
        try:
            outcome = launch.train(plan, reporter, resolved=resolved)
        finally:
            os.environ.clear()
            os.environ.update(environment)
        return SimpleNamespace(
            plan=plan, rows=reporter.rows, table=reporter.table, outcome=outcome, run_dir=Path(plan.run_dir),
            warnings=reporter.warnings,
        )  # fmt: skip

    return run
