"""The operations of `custom.augmentation`, their parameters, and the curriculum that moves them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Degrees = Annotated[float, Meta(ge=-180.0, le=180.0)]
Factor = Annotated[float, Meta(ge=0.0, le=10.0)]
Zoom = Annotated[float, Meta(ge=0.05, le=20.0)]
Share = Annotated[float, Meta(gt=0.0, le=1.0)]
Ratio = Annotated[float, Meta(ge=0.05, le=20.0)]
Multiple = Annotated[int, Meta(ge=1, le=1024)]


class Params(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of an operation; a range is [low, high], and one value written twice is that value."""


class _Drawn(Params, frozen=True, kw_only=True):
    prob: Annotated[Probability, Meta(description="Probability that the operation is done.")] = 0.5


class Flip(_Drawn, frozen=True, kw_only=True):
    """`hflip`, `vflip`: no pixel is resampled, and two of them give the image back."""


class Rotate(_Drawn, frozen=True, kw_only=True):
    """`rotate`: about the centre of the image, whose size stays; one of max_deg and deg."""

    max_deg: Annotated[Annotated[float, Meta(ge=0.0, le=180.0)] | None, Meta(description="Degrees either way.")] = None
    deg: Annotated[
        tuple[Degrees, Degrees] | None, Meta(description="Range in degrees; positive turns clockwise on screen.")
    ] = None


class Scale(_Drawn, frozen=True, kw_only=True):
    """`scale`: about the centre of the image, whose size stays."""

    lo: Annotated[Zoom, Meta(description="Smallest factor.")] = 0.9
    hi: Annotated[Zoom, Meta(description="Largest factor.")] = 1.1


class ResizeByScale(_Drawn, frozen=True, kw_only=True):
    """`resize_by_scale`: another size of the whole image; lo and hi, or scales."""

    lo: Annotated[Zoom | None, Meta(description="Smallest factor; 0.8 without scales.")] = None
    hi: Annotated[Zoom | None, Meta(description="Largest factor; 1.2 without scales.")] = None
    scales: Annotated[tuple[Zoom, ...] | None, Meta(description="Factors of which one is drawn.")] = None
    align_multiple: Annotated[
        Multiple | None, Meta(description="Pixels of which both sides become multiples, by the nearest; null: none.")
    ] = 32


class RandomCrop(_Drawn, frozen=True, kw_only=True):
    """`random_crop`: a part of the image; not taken where objects would suffer more than these say."""

    scale: Annotated[tuple[Share, Share], Meta(description="Range of the part's share of the area.")] = (0.6, 1.0)
    aspect_ratio: Annotated[
        tuple[Ratio, Ratio], Meta(description="Range of width over height; the nearest that fits the image.")
    ] = (0.8, 1.25)
    min_coverage: Annotated[
        Probability, Meta(description="Share of an object's area or length that must stay, or it is dropped.")
    ] = 0.3
    min_objects: Annotated[
        Annotated[int, Meta(ge=0)], Meta(description="With fewer objects left (and all that there were) no crop.")
    ] = 1
    skip_if_line: Annotated[bool, Meta(description="No crop where a polyline would be cut.")] = True


class ColorJitter(_Drawn, frozen=True, kw_only=True):
    """`color_jitter`: factors, each drawn by itself; 1 changes nothing."""

    brightness: Annotated[tuple[Factor, Factor], Meta(description="Range of the factor on all values.")] = (1.0, 1.0)
    contrast: Annotated[tuple[Factor, Factor], Meta(description="Range of the distance from mean grey.")] = (1.0, 1.0)
    saturation: Annotated[tuple[Factor, Factor], Meta(description="Range of the distance from own grey.")] = (1.0, 1.0)


class Gamma(_Drawn, frozen=True, kw_only=True):
    """`gamma`: value ^ gamma on values in [0, 1]; above 1 is darker."""

    gamma: Annotated[
        tuple[Annotated[float, Meta(gt=0.0, le=10.0)], Annotated[float, Meta(gt=0.0, le=10.0)]],
        Meta(description="Range of the exponent."),
    ] = (0.8, 1.25)


class Hsv(_Drawn, frozen=True, kw_only=True):
    """`hsv`: hue is turned, saturation and value are multiplied."""

    hue: Annotated[tuple[Degrees, Degrees], Meta(description="Range in degrees.")] = (-10.0, 10.0)
    saturation: Annotated[tuple[Factor, Factor], Meta(description="Range of the factor.")] = (0.9, 1.1)
    value: Annotated[tuple[Factor, Factor], Meta(description="Range of the factor.")] = (0.9, 1.1)


class Clahe(_Drawn, frozen=True, kw_only=True):
    """`clahe`: adaptive histogram equalisation of lightness."""

    clip_limit: Annotated[
        tuple[Annotated[float, Meta(gt=0.0, le=100.0)], Annotated[float, Meta(gt=0.0, le=100.0)]],
        Meta(description="Range of the contrast limit."),
    ] = (1.0, 3.0)
    tile_grid_size: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=64)], Annotated[int, Meta(ge=1, le=64)]],
        Meta(description="Tiles across and down."),
    ] = (8, 8)


class AutoContrast(_Drawn, frozen=True, kw_only=True):
    """`auto_contrast`: each channel is stretched to 0 … 255."""

    cutoff: Annotated[
        Annotated[float, Meta(ge=0.0, lt=50.0)], Meta(description="Percent of the pixels left out at both ends.")
    ] = 0.0


class Sharpness(_Drawn, frozen=True, kw_only=True):
    """`sharpness`: 0 smooths, 1 changes nothing, above it sharpens."""

    factor: Annotated[tuple[Factor, Factor], Meta(description="Range of the factor.")] = (0.5, 1.5)


class PadToMultiple(Params, frozen=True, kw_only=True):
    """`pad_to_multiple`: grey at the right and the bottom."""

    multiple: Annotated[Multiple, Meta(description="Pixels of which both sides become multiples.")] = 32


class ExpandToFitAffine(Params, frozen=True, kw_only=True):
    """`expand_to_fit_affine`: a canvas on which what the operations before it turned and scaled is whole."""

    multiple: Annotated[Multiple, Meta(description="Pixels of which both sides become multiples.")] = 32
    max_pixels: Annotated[
        Annotated[int, Meta(ge=1024)] | None, Meta(description="Most pixels of the canvas; scaled down to fit.")
    ] = None


class AugmentOp(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name"):
    """One operation of `custom.augmentation.ops`."""

    params: Params = Params()

    @property
    def name(self) -> str:
        """As recipes write it."""
        return str(self.__struct_config__.tag)


class HflipOp(AugmentOp, frozen=True, kw_only=True, tag="hflip"):
    """Left becomes right."""

    params: Flip = Flip()


class VflipOp(AugmentOp, frozen=True, kw_only=True, tag="vflip"):
    """Top becomes bottom."""

    params: Flip = Flip()


class RotateOp(AugmentOp, frozen=True, kw_only=True, tag="rotate"):
    """Turns the image."""

    params: Rotate = Rotate()


class ScaleOp(AugmentOp, frozen=True, kw_only=True, tag="scale"):
    """Zooms in or out."""

    params: Scale = Scale()


class ResizeByScaleOp(AugmentOp, frozen=True, kw_only=True, tag="resize_by_scale"):
    """Changes the size of the whole image."""

    params: ResizeByScale = ResizeByScale()


class RandomCropOp(AugmentOp, frozen=True, kw_only=True, tag="random_crop"):
    """Takes a part of the image."""

    params: RandomCrop = RandomCrop()


class ColorJitterOp(AugmentOp, frozen=True, kw_only=True, tag="color_jitter"):
    """Changes brightness, contrast and saturation."""

    params: ColorJitter = ColorJitter()


class GammaOp(AugmentOp, frozen=True, kw_only=True, tag="gamma"):
    """Changes the tone curve."""

    params: Gamma = Gamma()


class HsvOp(AugmentOp, frozen=True, kw_only=True, tag="hsv"):
    """Changes hue, saturation and value."""

    params: Hsv = Hsv()


class ClaheOp(AugmentOp, frozen=True, kw_only=True, tag="clahe"):
    """Evens out local contrast."""

    params: Clahe = Clahe()


class AutoContrastOp(AugmentOp, frozen=True, kw_only=True, tag="auto_contrast"):
    """Stretches contrast."""

    params: AutoContrast = AutoContrast()


class SharpnessOp(AugmentOp, frozen=True, kw_only=True, tag="sharpness"):
    """Smooths or sharpens."""

    params: Sharpness = Sharpness()


class PadToMultipleOp(AugmentOp, frozen=True, kw_only=True, tag="pad_to_multiple"):
    """Pads the image."""

    params: PadToMultiple = PadToMultiple()


class ExpandToFitAffineOp(AugmentOp, frozen=True, kw_only=True, tag="expand_to_fit_affine"):
    """Widens the canvas."""

    params: ExpandToFitAffine = ExpandToFitAffine()


AnyOp = (
    HflipOp | VflipOp | RotateOp | ScaleOp | ResizeByScaleOp | RandomCropOp | ColorJitterOp | GammaOp | HsvOp | ClaheOp
    | AutoContrastOp | SharpnessOp | PadToMultipleOp | ExpandToFitAffineOp
)  # fmt: skip

OPS: dict[str, type[AugmentOp]] = {str(op.__struct_config__.tag): op for op in AnyOp.__args__}
"""Every operation by its name."""
