"""How far a run is at a sample, in samples."""

from __future__ import annotations

import pytest

from vltool.run.data import run_length

HOW = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    ("more", "epoch", "processes", "length"),
    [
        ({"num_train_epochs": 3}, 16, 2, (48, 8.0)),
        ({"max_steps": 5}, 16, 2, (40, 8.0)),
        # 10 samples are two steps, of 8 and of 2: 20 steps are 10 epochs.
        ({"max_steps": 20}, 10, 2, (100, 5.0)),
        ({"max_steps": 7}, 10, 2, (35, 5.0)),
        # One round of 4 is dropped of 11, and two make one step.
        ({"max_steps": 20, "dataloader_drop_last": True}, 11, 2, (220, 11.0)),
        ({"max_steps": 6}, 3, 8, (18, 3.0)),
    ],
)
def test_steps_are_as_long_as_the_samples_of_an_epoch_make_them(more, epoch, processes, length):
    assert run_length(HOW | more, epoch, processes) == length
