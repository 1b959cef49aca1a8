"""Colours, held against PIL where it does the same, and against what the words mean where it does not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vltool.data.augment.pipeline import Pipeline

SMOOTH = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((96, 72))
)


def changed(name, image=SMOOTH, **params):
    pipeline = Pipeline.from_ops([{"name": name, "params": {"prob": 1.0} | params}])
    return pipeline.apply(image, (), rng=np.random.default_rng(0)).image


def close(one, other, most=1):
    return int(abs(one.astype(int) - np.asarray(other).astype(int)).max()) <= most


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.6])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_color_jitter_is_what_pil_does(name, enhance, factor):
    got = changed("color_jitter", **{name: [factor, factor]})
    assert close(got, enhance(Image.fromarray(SMOOTH)).enhance(factor), most=2)


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_sharpness_is_what_pil_does_inside_of_the_border(factor):
    want = np.asarray(ImageEnhance.Sharpness(Image.fromarray(SMOOTH)).enhance(factor))
    assert close(changed("sharpness", factor=[factor, factor])[1:-1, 1:-1], want[1:-1, 1:-1], most=2)
    smoothed = np.asarray(Image.fromarray(SMOOTH).filter(ImageFilter.SMOOTH))[1:-1, 1:-1]
    assert close(changed("sharpness", factor=[0.0, 0.0])[1:-1, 1:-1], smoothed)


@pytest.mark.parametrize("cutoff", [0.0, 2.0])
def test_auto_contrast_is_what_pil_does(cutoff):
    dull = (SMOOTH // 2 + 40).astype(np.uint8)
    want = ImageOps.autocontrast(Image.fromarray(dull), cutoff=cutoff)
    assert close(changed("auto_contrast", dull, cutoff=cutoff), want, most=4 if cutoff else 1)
    flat = np.full((8, 8, 3), 77, dtype=np.uint8)
    assert np.array_equal(changed("auto_contrast", flat), flat), "one colour cannot be stretched"


def test_gamma_is_a_power():
    want = np.round(255 * (SMOOTH / 255.0) ** 2.2).astype(np.uint8)
    assert np.array_equal(changed("gamma", gamma=[2.2, 2.2]), want)


def test_a_third_of_a_turn_of_hue_makes_red_green():
    red = np.zeros((4, 4, 3), dtype=np.uint8)
    red[..., 0] = 200
    still = {"saturation": [1.0, 1.0], "value": [1.0, 1.0]}
    assert changed("hsv", red, hue=[120.0, 120.0], **still)[0, 0].tolist() == [0, 200, 0]
    assert changed("hsv", red, hue=[-120.0, -120.0], **still)[0, 0].tolist() == [0, 0, 200]
    assert changed("hsv", red, hue=[0.0, 0.0], saturation=[0.0, 0.0], value=[0.5, 0.5])[0, 0].tolist() == [100] * 3


def test_clahe_widens_a_dull_image_and_keeps_its_hue():
    dull = np.stack([SMOOTH[..., 0] // 8 + 100] * 3, axis=-1)
    got = changed("clahe", dull, clip_limit=[4.0, 4.0])
    assert got.std() > 1.5 * dull.std()
    assert abs(got.astype(int) - got.mean(-1, keepdims=True)).max() <= 2, "grey stays grey"


def test_padding_is_grey_that_the_model_sees_as_zero():
    padded = Pipeline.from_ops([{"name": "pad_to_multiple", "params": {"multiple": 64}}]).apply(
        SMOOTH, (), rng=np.random.default_rng(0)
    )
    assert padded.image.shape == (128, 128, 3)
    assert np.array_equal(padded.image[:72, :96], SMOOTH)
    assert set(padded.image[72:].ravel()) == {128}
    assert abs((128 / 255 - 0.5) / 0.5) < 0.005
