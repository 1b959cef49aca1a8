"""Names of metrics and the rows of logging.jsonl, both ways."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vltool.errors import BadContent, Problem
from vltool.run.evidence import write_atomically
from vltool.run.plan import RunPlan

FILE_NAME = "logging.jsonl"
COMPLETIONS_FILE_NAME = "completions.jsonl"
WARNINGS_FILE_NAME = "warnings.jsonl"
NOT_FINITE_FILE_NAME = "not_finite.jsonl"
"""The records of the batch or step that ended the run with a value that is not finite."""

SKIPPED_FILE_NAME = "skipped.jsonl"
"""Records that turned out bad when they were opened, and were left out as the recipe says."""

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def prefixed(name: str) -> str:
    """A trainer's metric name with its one prefix: `loss` -> `train/loss`, `eval_loss` -> `eval/loss`."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def make_row(step: int, logs: Mapping[str, Any]) -> dict[str, int | float]:
    """One row: the integer `step`, then every numeric metric under its prefixed name."""
    metrics = {prefixed(name): float(value) for name, value in logs.items() if isinstance(value, int | float)}
    return {"step": step} | metrics


def encode_row(row: Mapping[str, int | float]) -> str:
    """The row as one JSON line. JSON has no NaN and no infinity: they become the strings nan, inf and -inf."""
    return json.dumps(
        {
            name: value if isinstance(value, int) or math.isfinite(value) else str(float(value))
            for name, value in row.items()
        }
    )


def append_row(run_dir: Path, row: Mapping[str, int | float]) -> None:
    """Add a row to the run's logging.jsonl."""
    with (run_dir / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write(encode_row(row) + "\n")


def append_completion(run_dir: Path, step: int, source: str, text: str) -> None:
    """Keep one of the texts that a step sampled, for the operator to read."""
    with (run_dir / COMPLETIONS_FILE_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "source": source, "text": text}, ensure_ascii=False) + "\n")


def append_skipped(run_dir: Path, step: int, problems: Iterable[Problem]) -> None:
    """Keep why records are missing in a step. In one write: several processes append to the same file."""
    lines = [json.dumps({"step": step} | problem.to_json(), ensure_ascii=False) + "\n" for problem in problems]
    with (run_dir / SKIPPED_FILE_NAME).open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def read_rows(run_dir: Path) -> Iterator[dict[str, int | float]]:
    """Rows of the run's logging.jsonl, oldest first; none if there is no such file.

    Raises BadContent for a line that is no metric row.
    """
    yield from _rows(run_dir / FILE_NAME)


def _rows(path: Path, *, drop_torn: bool = False) -> Iterator[dict[str, int | float]]:
    if not path.is_file():
        return
    content = path.read_bytes()
    if drop_torn:
        content = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = {name: _number(value) for name, value in json.loads(line).items()}
            if type(row.get("step")) is not int:
                raise ValueError("it has no integer step")
        except (ValueError, AttributeError, RecursionError) as error:
            raise BadContent(f"{path}:{number}: is no metric row: {error}", "look at what else writes there") from error
        yield row


def _number(value: Any) -> int | float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is no number")
    number: int | float = value
    return number


def forget_after(run_dir: Path, step: int) -> None:
    """Drop the rows of steps after `step`: a resumed run writes them again.

    So goes a last line without its end, which a run leaves that died while writing it; and so go the texts that
    those steps sampled, and the records that they skipped.
    """
    for name in (COMPLETIONS_FILE_NAME, SKIPPED_FILE_NAME):
        if (kept_beside := run_dir / name).is_file():
            lines = kept_beside.read_bytes().splitlines(keepends=True)
            write_atomically(kept_beside, b"".join(line for line in lines if _is_within(line, step)))
    kept = [encode_row(row) + "\n" for row in _rows(run_dir / FILE_NAME, drop_torn=True) if row["step"] <= step]
    write_atomically(run_dir / FILE_NAME, "".join(kept).encode())


def _is_within(line: bytes, step: int) -> bool:
    return line.endswith(b"\n") and json.loads(line)["step"] <= step


def expected_metrics(plan: RunPlan, split: str, row: Mapping[str, int | float] = {}) -> set[str]:
    """Names that every row of `split` (`train` or `eval`) must hold; of `row`, if the student wrote all its text."""
    names = {"loss"} if row.get("train/source/student") == 1.0 else {"loss", "sft_loss", "token_acc", "entropy"}
    if split == "train":
        names |= {"grad_norm", "learning_rate", "epoch"}
    kd = plan.distillation
    if kd is not None and (split == "train" or kd.eval_kd_batches != 0):
        names |= {"llm_kd_loss"} if kd.llm_kd_weight > 0 else set()
        names |= {"vision_kd_loss"} if kd.visual is not None else set()
    return {f"{split}/{name}" for name in names}


def identity_error(plan: RunPlan, row: Mapping[str, int | float], split: str) -> float:
    """|loss − (sft_alpha·sft_loss + llm_kd_loss + vision_kd_loss)| of a row: how far it is from its parts' sum."""
    if row.get(f"{split}/source/student"):
        # Its text has no cross entropy, and is among the tokens that the loss was divided by.
        return 0.0
    alpha = 1.0 if plan.distillation is None else plan.distillation.sft_alpha
    distilled = (row.get(f"{split}/{name}", 0.0) for name in ("llm_kd_loss", "vision_kd_loss"))
    return abs(row[f"{split}/loss"] - alpha * row[f"{split}/sft_loss"] - sum(distilled))
