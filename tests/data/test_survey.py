"""What a file holds on the whole."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

import vltool.data
from vltool.data import survey as surveying
from vltool.data.conversation import Prompts
from vltool.data.dataset import CaptionDataset
from vltool.data.survey import spread, survey
from vltool.data.tokens import TextCounter

DEMO = Path(vltool.data.__file__).parent / "demo" / "photos.jsonl"
HOW: dict[str, Any] = {
    "prompts": Prompts("describe"), "emit_norm": "norm1000", "use_summary": False, "max_pixels": 90_000,
    "sample_limit": None, "root": None,
}  # fmt: skip


@given(st.integers(0, 50), st.integers(0, 500))
def test_a_spread_is_even_and_reaches_both_ends(count, records):
    chosen = spread(count, records)
    assert len(chosen) == len(set(chosen)) == min(count, records)
    assert all(0 <= position < records for position in chosen)
    if len(chosen) > 1:
        gaps = {right - left for left, right in itertools.pairwise(chosen)}
        assert (chosen[0], chosen[-1]) == (0, records - 1)
        assert max(gaps) - min(gaps) <= 1


def test_lengths_are_those_of_the_samples(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    counter = TextCounter(tokenizer)
    found = survey(DEMO, counter=counter, reading=HOW)
    samples = CaptionDataset(DEMO, **HOW)
    assert found.lengths == tuple(counter.count(samples[i].messages, max_pixels=90_000) for i in range(6))
    assert found.looked_at == 6
    assert found.kinds == {"bbox_2d": 39, "poly": 16, "line": 7}


def test_bad_records_are_left_out_and_limits_kept(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    path.write_text("{\n" + DEMO.read_text())
    assert survey(path, counter=None, reading=HOW).kinds["line"] == 7
    assert survey(path, counter=None, reading=HOW | {"sample_limit": 2}).kinds == {"bbox_2d": 4, "poly": 3, "line": 1}
    monkeypatch.setattr(surveying, "MOST_SURVEYED", 2)
    assert survey(path, counter=None, reading=HOW).looked_at == 2
