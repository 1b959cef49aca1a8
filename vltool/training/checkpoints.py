"""Checkpoints that are whole or absent: written beside, renamed, rotated, the best one kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from vltool.training import pissa
from vltool.training.ranks import Ranks
from vltool.training.swift_bridge import Seq2SeqTrainer

STAGING = ".saving"
"""Folder in the run folder in which a checkpoint is written before it is renamed to its place."""


class CheckpointingTrainer(Seq2SeqTrainer):
    """ms-swift's trainer, whose processes save and load together."""

    def __init__(self, *args: Any, ranks: Ranks, **kwargs: Any) -> None:
        self._staging: Path | None = None
        self._started: dict[str, Tensor] = {}
        self._ranks = ranks
        super().__init__(*args, **kwargs)
        # The parent would look for old checkpoints in the wrong folder, and at the end delete the last one
        # where only one is to be kept and another was best.
        self._checkpoints_kept = self.args.save_total_limit
        self.args.save_total_limit = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint beside, then rename it: a folder named checkpoint-N is always whole."""
        run_dir = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self._staging = run_dir / STAGING
        if self._ranks.is_first:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir()
            # ms-swift copies it from beside the checkpoint, for its tools that merge and serve.
            if (run_dir / "args.json").is_file():
                shutil.copy(run_dir / "args.json", self._staging)
        self._ranks.wait()
        try:
            super()._save_checkpoint(model, trial)
            best = run_dir / f"checkpoint-{self.state.best_global_step}"
            self._ranks.wait()
            if best.is_dir() or best.name == name:
                # The parent takes the folder beside for its place, and writes that down.
                self.state.best_model_checkpoint = str(best)
            if self._ranks.is_first:
                self.state.save_to_json(str(self._staging / name / TRAINER_STATE_NAME))
                if (run_dir / name).exists():
                    shutil.rmtree(run_dir / name)
                (self._staging / name).rename(run_dir / name)
        finally:
            if self._ranks.is_first:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self._update_last_checkpoint_symlink()
        if self._ranks.is_first:
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self._checkpoints_kept,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self._ranks.wait()

    def _save_initial_model(self, output_dir: str) -> None:
        self._started = pissa.start_factors(self.accelerator.unwrap_model(self.model))

    def _save_converted_model(self, output_dir: str) -> None:
        # The parent keeps such an adapter beside the one that only its own process could load.
        if self._started:
            pissa.make_plain(Path(output_dir), self._started)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._started:
            pissa.load_trained(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint), self._started)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
