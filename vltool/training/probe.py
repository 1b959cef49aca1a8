"""A fixed batch of captions, measured before and after training, with logits that a new process can check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from vltool.run.evidence import PROBE_FILE_NAME, Evidence
from vltool.training.collate import EncodedRecords
from vltool.training.losses import IGNORE
from vltool.training.teacher import evaluating
from vltool.training.trainer import CaptionTrainer

RECORDS = 2
POSITIONS = 16
"""Label positions whose logits are kept; all of them would be gigabytes at a real vocabulary."""


class Probe(TrainerCallback):
    """The first records of the training data as one batch, which every process measures."""

    def __init__(
        self, trainer: CaptionTrainer, records: EncodedRecords, evidence: Evidence, keep: Callable[[], None]
    ) -> None:
        """keep: writes the evidence into the run folder."""
        self._trainer = trainer
        self._evidence = evidence
        self._keep = keep
        self._records = records

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure cross entropy and divergence per label token: only now a model in shards can run."""
        records = self._records
        self._batch = self._trainer.data_collator([records[i] for i in range(min(RECORDS, records.records))])
        self._evidence.ce_before, self._evidence.kd_at_start = self._trainer.measure(self._batch)
        self._keep()

    def measure_after(self) -> None:
        """Measure the cross entropy of the trained model."""
        self._evidence.ce_after, _ = self._trainer.measure(self._batch)

    def measure_vision(self) -> None:
        """Measure what vision-feature distillation brings the trained model, which has left its teacher."""
        self._evidence.vision_gradients = self._trainer.vision_gradients(self._batch)

    def save(self, run_dir: Path, *, writes: bool) -> None:
        """Write the batch and the trained model's logits at some label positions into the run folder.

        writes: whether this process is the one that does; all have to compute them.
        """
        inputs = {
            name: value for name, value in self._batch.items() if isinstance(value, Tensor) and name in MODEL_INPUTS
        }
        labels_BS = self._batch["labels"]
        rows, columns = (labels_BS[:, 1:] != IGNORE).nonzero(as_tuple=True)
        chosen = torch.linspace(0, len(rows) - 1, min(POSITIONS, len(rows))).round().long()
        at_P2 = torch.stack((rows[chosen], columns[chosen]), dim=1)
        model = self._trainer.model_wrapped
        with torch.no_grad(), evaluating(model), self._trainer.accelerator.autocast():
            logits_PV = logits_at(model, inputs, at_P2)
        if writes:
            tensors = {f"inputs.{name}": value for name, value in inputs.items()}
            tensors |= {"positions": at_P2, "logits": logits_PV}
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                run_dir / PROBE_FILE_NAME,
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
