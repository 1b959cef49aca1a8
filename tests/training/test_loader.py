"""Which records make a step: the same however many processes share it, and every one of them once an epoch."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from vltool.training.loader import Batches


def dealt(records, ranks, batch_size, *, epoch=0, drop_last=False):
    """Each process's batches, by the places of their samples."""
    found = []
    for rank in range(ranks):
        batches = Batches(records, batch_size=batch_size, rank=rank, ranks=ranks, drop_last=drop_last)
        batches.set_epoch(epoch)
        assert all(draw.epoch == epoch for batch in batches for draw in batch)
        found.append([[draw.place for draw in batch] for batch in batches])
        assert len(batches) == len(found[-1])
    return found


sizes = st.integers(1, 60), st.integers(1, 5), st.integers(1, 5)


@given(*sizes)
def test_an_epoch_holds_every_record_once(records, ranks, batch_size):
    seen = [record for batches in dealt(records, ranks, batch_size) for batch in batches for record in batch]
    assert sorted(record for record in seen if record < records) == list(range(records))


@given(*sizes)
def test_all_processes_have_as_many_batches_of_the_same_sizes(records, ranks, batch_size):
    shapes = [[len(batch) for batch in batches] for batches in dealt(records, ranks, batch_size)]
    assert all(shape == shapes[0] for shape in shapes)
    assert all(1 <= size <= batch_size for size in shapes[0])


@given(*sizes, st.integers(1, 4))
def test_a_step_has_the_same_records_on_one_process_and_on_several(records, ranks, per_device, accumulation):
    def steps(batches, count):
        groups = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
        return [sorted(r for batch in group for r in batch if r < count) for group in groups]

    alone = steps(dealt(records, 1, per_device * ranks)[0], records)
    shared = [steps(batches, records) for batches in dealt(records, ranks, per_device)]
    together = [sorted(itertools.chain(*parts)) for parts in zip(*shared, strict=True)]
    assert together == alone


@given(*sizes)
def test_what_is_dropped_at_the_end_is_less_than_a_round(records, ranks, batch_size):
    found = dealt(records, ranks, batch_size, drop_last=True)
    seen = [record for batches in found for batch in batches for record in batch]
    assert len(set(seen)) == len(seen) == records // (ranks * batch_size) * ranks * batch_size
    assert max(seen, default=0) < records


def test_batches_follow_the_samples_in_order():
    assert dealt(5, 1, 2, epoch=3) == [[[0, 1], [2, 3], [4]]]
