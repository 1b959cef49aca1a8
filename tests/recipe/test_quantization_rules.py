"""Bits and the method that packs into them come together."""

from __future__ import annotations

import pytest
from planning import MINIMAL, notes_of, problems_of


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("section", "what", "do"),
    [
        ("{quant_bits: 4}", "quantization.quant_bits packs nothing without quant_method", "quant_method: bnb"),
        ("{quant_method: bnb}", "quantization.quant_method wants a number of bits", "quant_bits: 4"),
    ],
)
def test_half_of_it_is_told(section, what, do):
    (problem,) = problems_of(f"{MINIMAL}quantization: {section}\n")
    assert what in problem
    assert do in problem


def test_keys_that_pack_nothing_are_noted():
    (note,) = notes_of(MINIMAL + "quantization: {bnb_4bit_quant_type: nf4}")
    assert "quantization.bnb_4bit_quant_type has no effect without quant_method" in note
    assert notes_of(MINIMAL + "quantization: {quant_method: bnb, quant_bits: 4, bnb_4bit_quant_type: nf4}") == []
