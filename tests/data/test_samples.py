"""Where a sample stands in the run, which is what a curriculum goes by."""

from __future__ import annotations

import json

import msgspec
import pytest

pytest.importorskip("cv2")
pytest.importorskip("shapely")

from PIL import Image

from vltool.data.augment.policy import Augmenter
from vltool.data.conversation import Prompts
from vltool.data.dataset import CaptionDataset
from vltool.data.samples import Draw, OneAfterTheOther, Samples
from vltool.recipe.schema import Augmentation


def test_a_curriculum_goes_on_from_epoch_to_epoch(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    record = {"images": ["a.png"], "summary": "black"}
    (tmp_path / "r.jsonl").write_text((json.dumps(record) + "\n") * 4)
    document = {
        "enabled": True, "ops": [{"name": "hflip"}],
        "curriculum": {"phases": [{"until_percent": 50, "bypass_prob": 1.0}]},
    }  # fmt: skip
    augmenter = Augmenter(msgspec.convert(document, Augmentation), seed=0, samples=8, samples_a_step=1)
    reading = {"prompts": Prompts("?"), "emit_norm": "norm1000", "use_summary": None, "max_pixels": None}
    samples = Samples(
        [CaptionDataset(tmp_path / "r.jsonl", **reading, augmenter=augmenter)], OneAfterTheOther([4], seed=1)
    )
    assert not samples[Draw(0, 0)].change.bypassed
    assert all(samples[Draw(1, place)].change.bypassed for place in range(4)), "the second epoch is past the half"
