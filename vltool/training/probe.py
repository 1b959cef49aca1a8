"""A fixed batch of captions, measured before and after training, with logits that a new process can check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vltool.run.evidence import PROBE_FILE_NAME
from vltool.training.collate import EncodedRecords
from vltool.training.losses import IGNORE
from vltool.training.teacher import evaluating
from vltool.training.trainer import CaptionTrainer

RECORDS = 2
POSITIONS = 16
"""Label positions whose logits are kept; all of them would be gigabytes at a real vocabulary."""


class Probe:
    """The first records of the training data as one batch."""

    def __init__(self, trainer: CaptionTrainer, records: EncodedRecords) -> None:
        self._trainer = trainer
        self._batch = trainer.data_collator([records[i] for i in range(min(RECORDS, len(records)))])

    def measure(self) -> tuple[float, float | None]:
        """Cross entropy and divergence (None without a teacher) per label token."""
        return self._trainer.measure(self._batch)

    def save(self, run_dir: Path) -> None:
        """Write the batch and the trained model's logits at some label positions into the run folder."""
        inputs = {
            name: value for name, value in self._batch.items() if isinstance(value, Tensor) and name in MODEL_INPUTS
        }
        labels_BS = self._batch["labels"]
        rows, columns = (labels_BS[:, 1:] != IGNORE).nonzero(as_tuple=True)
        chosen = torch.linspace(0, len(rows) - 1, min(POSITIONS, len(rows))).round().long()
        at_P2 = torch.stack((rows[chosen], columns[chosen]), dim=1)
        with torch.no_grad(), evaluating(self._trainer.model), self._trainer.accelerator.autocast():
            logits_PV = logits_at(self._trainer.model, inputs, at_P2)
        tensors = {f"inputs.{name}": value for name, value in inputs.items()}
        tensors |= {"positions": at_P2, "logits": logits_PV}
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, run_dir / PROBE_FILE_NAME
        )


MODEL_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
"""What a plain transformers model takes; it makes its own positions."""


def logits_at(model: Any, inputs: dict[str, Tensor], at_P2: Tensor) -> Tensor:
    """fp32 logits [P, V] at (row, column) positions of a batch."""
    device = next(model.parameters()).device
    moved = {name: value.to(device) for name, value in inputs.items()}
    # One row at a time would be exact for any model; kept columns bound what the head computes.
    keep = at_P2[:, 1].unique().to(device)
    logits_BKV = model(**moved, use_cache=False, logits_to_keep=keep).logits
    column = torch.searchsorted(keep, at_P2[:, 1].contiguous().to(device))
    picked: Tensor = logits_BKV[at_P2[:, 0].to(device), column].float()
    return picked


def load_probe(run_dir: Path) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The batch's inputs, the positions and the logits that `Probe.save` wrote."""
    tensors = load_file(run_dir / PROBE_FILE_NAME)
    inputs = {name.removeprefix("inputs."): value for name, value in tensors.items() if name.startswith("inputs.")}
    return inputs, tensors["positions"], tensors["logits"]
