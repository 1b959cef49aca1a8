"""What the libraries below say goes into the run's warnings.jsonl, not over the operator's terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging

from vltool.run.telemetry import WARNINGS_FILE_NAME

LOGGERS = ("swift", "transformers", "peft", "accelerate", "DeepSpeed", "py.warnings")


class WarningsFile(logging.Handler):
    """Appends each warning, once, as a JSON line; keeps them until the run folder is the run's own."""

    def __init__(self, run_dir: Path | None) -> None:
        super().__init__(logging.WARNING)
        self._path = None if run_dir is None else run_dir / WARNINGS_FILE_NAME
        self._seen: set[str] = set()
        self._kept: list[str] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write or keep one record."""
        message = record.getMessage()
        if message in self._seen:
            return
        self._seen.add(message)
        line = json.dumps({"logger": record.name, "level": record.levelname, "message": message}) + "\n"
        if self._kept is None:
            self._append(line)
        else:
            self._kept.append(line)

    def told(self, messages: Sequence[str]) -> None:
        """Take in what vltool itself warned of before the worker started."""
        for message in messages:
            self.emit(logging.LogRecord("vltool", logging.WARNING, "", 0, message, None, None))

    def begin(self) -> None:
        """The run has begun: write what was kept, and from now on at once."""
        kept, self._kept = self._kept or [], None
        self._append("".join(kept))

    def _append(self, text: str) -> None:
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)


@contextmanager
def logs_into(run_dir: Path | None, *, show: bool) -> Iterator[WarningsFile]:
    """Inside, warnings of ms-swift, transformers, peft and Python go to the run folder, once it has begun.

    run_dir: None on all processes but the first, which see the same.
    show: leave the libraries' own output on the terminal too.
    """
    handler = WarningsFile(run_dir)
    logging.captureWarnings(True)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    former = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    if not show:
        transformers_logging.disable_progress_bar()
    for logger in loggers:
        if not show:
            logger.handlers = []
            logger.setLevel(logging.WARNING)
            logger.propagate = False
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        for logger, level, handlers, propagate in former:
            logger.handlers = handlers
            logger.setLevel(level)
            logger.propagate = propagate
        logging.captureWarnings(False)
        if bars:
            transformers_logging.enable_progress_bar()
