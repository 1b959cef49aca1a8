"""The plan of a mixture: who gives how many, in which order, and the same tomorrow."""

from __future__ import annotations

import hashlib
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vltool.data.conversation import Prompts
from vltool.data.fusion import capped, plan_evaluation, plan_mixture, policy, with_policy
from vltool.data.policy import Policy
from vltool.data.record import Object, Record
from vltool.errors import InvalidInput, Where
from vltool.recipe.fusion import Fusion, FusionDataset


def dataset(name, role="source", **more):
    given_ = {"augmentation_enabled": role == "target", "curriculum_enabled": role == "target"}
    given_ |= {"max_objects_per_image": None, "key": name, "train_jsonl": f"/{name}.jsonl", **more}
    return FusionDataset(role=role, name=name, **given_)


def mix(*datasets):
    return Fusion(
        file="mix.yaml",
        targets=tuple(one for one in datasets if one.role == "target"),
        sources=tuple(one for one in datasets if one.role == "source"),
        origins={one.name: Where("mix.yaml", number) for number, one in enumerate(datasets, 1)},
    )


OWN = dataset("own", "target")


def drawn(mixture, epoch):
    draws = mixture.epoch(epoch)
    return list(zip(draws.datasets_N.tolist(), draws.records_N.tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(
    targets=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    sources=st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 5.0)), max_size=3),
    seed=st.integers(0, 2**70),
    epoch=st.integers(0, 5),
)
def test_targets_once_and_sources_evenly(targets, sources, seed, epoch):
    names = [dataset(f"t{i}", "target") for i in range(len(targets))]
    names += [dataset(f"s{i}", ratio=ratio) for i, (_, ratio) in enumerate(sources)]
    counts = [*targets, *(count for count, _ in sources)]
    mixture = plan_mixture(mix(*names), counts, seed=seed)
    found = Counter(drawn(mixture, epoch))
    assert len(mixture) == found.total()
    for number, count in enumerate(counts):
        times = [found[number, record] for record in range(count)]
        quota = count if number < len(targets) else round(sources[number - len(targets)][1] * sum(targets))
        assert sum(times) == quota == mixture.quotas[number]
        assert max(times) - min(times) <= 1


def test_epochs_differ_in_order_and_in_what_sources_give():
    mixture = plan_mixture(mix(OWN, dataset("coco", ratio=0.5)), [100, 1000], seed=1)
    first, second = drawn(mixture, 0), drawn(mixture, 1)
    assert first == drawn(mixture, 0)
    assert {r for d, r in first if d == 1} != {r for d, r in second if d == 1}
    assert [r for d, r in first if d == 0] != [r for d, r in second if d == 0]
    assert drawn(plan_mixture(mixture.fusion, [100, 1000], seed=2), 0) != first


def test_the_plan_is_the_same_on_every_machine():
    mixture = plan_mixture(
        mix(OWN, dataset("a", ratio=0.3), dataset("b", ratio=1.7, seed=5)), [1000, 700, 900], seed=42
    )
    draws = mixture.epoch(3)
    data = draws.datasets_N.astype("<u2").tobytes() + draws.records_N.astype("<u4").tobytes()
    assert hashlib.sha256(data).hexdigest() == PLANNED


PLANNED = "507a7a32b4bb499835425c9e4d06a43e49809c6069efdb07045958bdabf066aa"


def test_sources_mix_with_targets_over_the_whole_epoch():
    mixture = plan_mixture(mix(OWN, dataset("coco", ratio=1.0)), [5000, 9000], seed=0)
    from_source = mixture.epoch(0).datasets_N == 1
    for part in range(10):
        assert 0.4 < from_source[part * 1000 : (part + 1) * 1000].mean() < 0.6


def test_every_record_of_a_source_is_as_likely():
    mixture = plan_mixture(mix(OWN, dataset("coco", ratio=1.0)), [10, 40], seed=7)
    times = Counter(record for epoch in range(800) for d, record in drawn(mixture, epoch) if d == 1)
    assert 140 < min(times.values()) <= max(times.values()) < 265  # 200 each, sigma 12


def test_an_own_seed_fixes_what_a_source_gives_whatever_the_others():
    own = dataset("coco", ratio=0.5, seed=9)
    alone = plan_mixture(mix(OWN, own), [100, 1000], seed=1)
    among = plan_mixture(mix(OWN, dataset("lvis", ratio=0.1), own), [100, 50, 1000], seed=2)
    assert sorted(r for d, r in drawn(alone, 4) if d == 1) == sorted(r for d, r in drawn(among, 4) if d == 2)


def test_a_ratio_that_gives_nothing_is_noted_with_one_that_does():
    mixture = plan_mixture(mix(OWN, dataset("coco", ratio=0.004)), [100, 10], seed=0)
    (note,) = mixture.notes
    assert mixture.quotas == (100, 0)
    assert note.what == "coco: ratio 0.004 of 100 records rounds to none"
    least = float(note.do.split()[3].rstrip(","))
    assert plan_mixture(mix(OWN, dataset("coco", ratio=least)), [100, 10], seed=0).quotas == (100, 1)


def test_sample_limit_leaves_the_later_records_out():
    limited = mix(dataset("own", "target", sample_limit=3), dataset("coco", ratio=2.0, sample_limit=2))
    mixture = plan_mixture(limited, [10, 10], seed=0)
    assert sorted(drawn(mixture, 0)) == [(0, 0), (0, 1), (0, 2), *[(1, 0)] * 3, *[(1, 1)] * 3]


def test_problems_are_told_together():
    bad = mix(dataset("own", "target", user_prompt="<|image_pad|> what?"), dataset("coco", ratio=1.0))
    with pytest.raises(InvalidInput) as caught:
        plan_mixture(bad, [4, 0], seed=0)
    assert [problem.what for problem in caught.value.problems] == [
        "own.user_prompt contains <|image_pad|>, which the model's template takes for an instruction",
        "coco has no record that can be used",
    ]


def test_evaluation_reads_every_record_in_order():
    mixture = plan_evaluation(mix(OWN, dataset("none", ratio=1.0), dataset("coco", ratio=0.01)), [2, 0, 3])
    assert drawn(mixture, 0) == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]


@given(count=st.integers(0, 30), most=st.integers(1, 30), position=st.integers(0, 10**9), epoch=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_a_cap_keeps_the_order_and_draws_anew_everywhere(count, most, position, epoch):
    objects = tuple(Object(str(i), "line", ((0, 0), (1, 1))) for i in range(count))
    record = Record(images=("a.jpg",), width=9, height=9, objects=objects)
    kept = capped(record, most, seed=1, epoch=epoch, position=position)
    numbers = [int(one.desc) for one in kept.objects]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == min(count, most)
    assert kept == capped(record, most, seed=1, epoch=epoch, position=position)
    mixture = plan_mixture(mix(OWN, dataset("coco", ratio=1.0, max_objects_per_image=most)), [4, 4], seed=1)
    numbers = mixture.kept(1, len(record.objects), epoch=epoch, position=position)
    assert kept.objects == (record.objects if numbers is None else tuple(record.objects[i] for i in numbers))
    assert mixture.kept(0, len(record.objects), epoch=epoch, position=position) is None


def test_caps_differ_between_positions_and_epochs():
    objects = tuple(Object(str(i), "line", ((0, 0), (1, 1))) for i in range(40))
    record = Record(images=("a.jpg",), width=9, height=9, objects=objects)
    kept = [capped(record, 20, seed=s, epoch=e, position=p) for s, e, p in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({one.objects for one in kept}) == 4


def test_prompts_and_policy():
    default = Prompts("default?", "system")
    own = dataset("coco", ratio=1.0, user_prompt="coco?", system_prompt="", curriculum_enabled=False)
    # What fuse writes of a dataset is what the reader takes up.
    assert msgspec.convert(policy(own), Policy).prompts(default) == Prompts("coco?", "")
    assert msgspec.convert(policy(OWN), Policy).prompts(default) == default
    assert policy(own) == {
        "dataset": "coco",
        "user_prompt": "coco?",
        "system_prompt": "",
        "augmentation_enabled": False,
        "curriculum_enabled": False,
    }
    assert policy(OWN)["augmentation_enabled"] is True
    assert policy(OWN, "val")["augmentation_enabled"] is False


def test_what_was_fused_before_keeps_its_prompts():
    before = {"id": 3, "fusion": {"dataset": "old", "user_prompt": "old?", "augmentation_enabled": False}}
    assert with_policy(before, policy(OWN)) == {
        "id": 3,
        "fusion": {
            "dataset": "own",
            "user_prompt": "old?",
            "augmentation_enabled": True,
            "curriculum_enabled": True,
        },
    }
