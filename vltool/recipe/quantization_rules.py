"""Rules on a base that is packed into fewer bits."""

from __future__ import annotations

from vltool.recipe.settings import Settings


def method_and_bits_come_together(settings: Settings) -> None:
    """ms-swift packs nothing for bits without a method, silently, and fails late for a method without bits."""
    method, bits = "quantization.quant_method", "quantization.quant_bits"
    if settings[bits] is not None and settings[method] is None:
        settings.problem(bits, f"{bits} packs nothing without quant_method", "write quant_method: bnb beside it")
    elif settings[method] is not None and settings[bits] is None:
        settings.problem(method, f"{method} wants a number of bits", "write quant_bits: 4 beside it")
    elif settings[method] is None:
        for key in settings.keys("quantization"):
            settings.note(f"quantization.{key}", f"quantization.{key} has no effect without quant_method")


RULES = (method_and_bits_come_together,)
