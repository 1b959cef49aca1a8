"""How far a run is at a sample, in samples, and what it augments with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vltool.errors import MissingOnHost
from vltool.recipe.schema import Augmentation
from vltool.run import data as reading
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


def test_augmentation_without_its_packages_says_which(monkeypatch):
    monkeypatch.setattr(reading, "find_spec", lambda module: None if module == "shapely" else object())
    data = SimpleNamespace(augmentation=Augmentation(enabled=True))
    with pytest.raises(MissingOnHost, match="needs shapely, which this host lacks") as caught:
        reading.augmenter_of(data, {}, epoch=4, processes=1)
    assert "vltool[augment]" in caught.value.problems[0].do
