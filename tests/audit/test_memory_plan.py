"""The memory plan against measured peaks, and how it moves with a recipe."""

from __future__ import annotations

import pytest
from planning import House
from shapes import TEXT_4B, VISION_4B, write_shapes

from vltool.audit.memory_knobs import knobs
from vltool.audit.memory_plan import GIB, plan_memory
from vltool.audit.model_flops import Batch
from vltool.errors import InvalidInput

GKD = {"rlhf_type": "gkd", "beta": 0.5, "sft_alpha": 0.3, "lmbda": 0.0, "seq_kd": False, "temperature": 1.0}
IMAGE = Batch(rows=4, tokens=2048, labels=400, patches=4096)
TEXT = Batch(rows=4, tokens=2048, labels=1600, patches=1024)
MEASURED = [
    # max_memory_allocated of benchmarks/distillation.py on an H100 with 80 GB, torch 2.11; FLOPs of a step
    (None, IMAGE, True, 12.6207, 157073782341632),
    (GKD, IMAGE, True, 12.6207, 222794491101184),
    (None, TEXT, True, 12.5504, 150226614616064),
    (GKD, TEXT, True, 12.5504, 219681302511616),
    (None, IMAGE, False, 57.8530, 157073782341632),
    (GKD, IMAGE, False, 57.9468, 222794491101184),
    (None, TEXT, False, 57.6421, 150226614616064),
    (GKD, TEXT, False, 57.6837, 219681302511616),
]
TRAINING = {"effective_batch_size": None, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Recipes over a base of the 4B shape."""
    house = House(tmp_path_factory.mktemp("house"))
    write_shapes(house.base)
    return house


def plan_of(house, source="base", *, training=(), **sections):
    return house.plan(source, **{"global_max_length": 2048, "training": TRAINING | dict(training)} | sections)


def part(memory, name):
    """Bytes of a row; 0 where there is none."""
    return sum(row.bytes for row in memory.rows() if row.name == name)


@pytest.mark.parametrize(("rlhf", "batch", "checkpointing", "gib", "flops"), MEASURED)
def test_the_plan_is_within_a_tenth_of_measured_peaks(house, rlhf, batch, checkpointing, gib, flops):
    sections = {"rlhf": rlhf} if rlhf else {}
    plan = plan_of(house, training={"gradient_checkpointing": checkpointing}, **sections)
    memory = plan_memory(plan, batch=batch)
    assert memory.allocated / GIB == pytest.approx(gib, rel=0.1)
    assert memory.time.flops == flops


@pytest.mark.parametrize(("checkpointing", "gib"), [(True, 14.15), (False, 44.03)])
def test_copies_of_saved_modules_are_planned_as_measured(house, checkpointing, gib):
    plan = plan_of(house, "stage1_aligner_full", training={"gradient_checkpointing": checkpointing})
    assert plan_memory(plan, batch=IMAGE).allocated / GIB == pytest.approx(gib, rel=0.03)


def test_rows_add_up_to_what_is_needed(house):
    memory = plan_memory(plan_of(house))
    *parts, needed = memory.rows()
    assert sum(row.bytes for row in parts) == needed.bytes == memory.needed
    assert part(memory, "frozen weights") == 2 * 4_437_815_808
    assert part(memory, "adapters") == 4 * 66_060_288
    assert part(memory, "optimizer") == 2 * part(memory, "adapters")


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("sections", [{}, {"tuner": {"freeze_vit": False, "freeze_aligner": False}}, {"rlhf": GKD}])
def test_more_to_read_never_takes_less(house, checkpointing, sections):
    plan = plan_of(house, training={"gradient_checkpointing": checkpointing}, **sections)
    sizes = {"rows": (1, 2, 4), "tokens": (1024, 2048, 4096), "labels": (1, 400, 1600), "patches": (256, 4096, 8192)}
    for name, values in sizes.items():
        kept = {"rows": 2, "tokens": 2048, "labels": 400, "patches": 4096}
        peaks = [plan_memory(plan, batch=Batch(**kept | {name: value})).allocated for value in values]
        assert peaks == sorted(peaks), name
        assert name == "labels" or peaks[0] < peaks[-1], name


def test_a_larger_adapter_takes_more(house):
    small, large = (plan_memory(plan_of(house, tuner={"lora_rank": rank})) for rank in (8, 64))
    assert part(large, "adapters") == 8 * part(small, "adapters")
    assert small.allocated < large.allocated


def test_a_frozen_vision_tower_keeps_nothing_and_a_trained_one_does(house):
    frozen, trained = (plan_memory(plan_of(house, tuner={"freeze_vit": f}), batch=IMAGE) for f in (True, False))
    assert part(frozen, "vision activations") == 0 < part(trained, "vision activations")
    own = plan_of(house, tuner={"freeze_vit": False}, training={"vit_gradient_checkpointing": False})
    assert part(plan_memory(own, batch=IMAGE), "vision activations") > part(trained, "vision activations")


@pytest.mark.parametrize("processes", [2, 8])
def test_zero_divides_what_it_shards(house, processes):
    launch = {"nproc_per_node": processes}
    whole, zero2, zero3 = (
        plan_memory(plan_of(house, launch=launch, deepspeed=config))
        for config in ({}, *({"enabled": True, "config": name} for name in ("zero2", "zero3")))
    )
    assert part(whole, "frozen weights") == part(zero2, "frozen weights")
    assert part(zero3, "frozen weights") == part(zero2, "frozen weights") // processes
    for memory in (zero2, zero3):
        # In 16 bits, beside a copy in fp32 that is updated.
        assert part(memory, "fp32 copies of what trains") == 4 * 66_060_288 // processes
        assert part(memory, "optimizer") == 8 * 66_060_288 // processes
        assert part(memory, "gradients") == 2 * 66_060_288 // processes


def test_what_is_offloaded_is_in_the_host_s_memory(house):
    memory = plan_memory(plan_of(house, deepspeed={"enabled": True, "config": "zero3_offload"}))
    on_host = {row.name: row.bytes for row in memory.on_host}
    assert on_host["frozen weights"] == 2 * 4_437_815_808
    assert part(memory, "frozen weights") == part(memory, "optimizer") == 0
    # The layers that run are there all the same.
    assert part(memory, "weights put together") == 2 * 10**9


def test_full_tuning_holds_gradients_and_moments_of_all_that_trains(house):
    memory = plan_memory(plan_of(house, ["base", "full"], tuner={"freeze_vit": True, "freeze_aligner": True}))
    trained = part(memory, "trained weights")
    assert trained + part(memory, "frozen weights") == 2 * 4_437_815_808
    assert part(memory, "optimizer") == 2 * trained
    assert part(memory, "gradients") == trained
    assert part(memory, "adapters") == 0


def test_four_bits_take_a_quarter_of_the_language_tower(house):
    base = plan_memory(plan_of(house))
    packed = plan_memory(plan_of(house, quantization={"quant_method": "bnb", "quant_bits": 4}))
    layers = 36 * 100_925_440
    assert part(base, "frozen weights") - part(packed, "frozen weights") == 2 * layers
    assert part(packed, "frozen weights in 4 bits") == pytest.approx(0.516 * layers, rel=0.001)


def test_teachers(house, tmp_path):
    other = write_shapes(tmp_path / "teacher", TEXT_4B | {"num_hidden_layers": 12}, VISION_4B)
    shared = plan_memory(plan_of(house, rlhf=GKD), batch=IMAGE)
    copy = plan_memory(plan_of(house, rlhf=GKD | {"teacher_model": str(other)}), batch=IMAGE)
    away = GKD | {"teacher_model": str(other), "offload_teacher_model": True}
    offloaded = plan_memory(plan_of(house, rlhf=away), batch=IMAGE)
    size = 2 * (4_437_815_808 - 24 * 100_930_816)
    assert part(shared, "the teacher") == 0
    assert part(copy, "the teacher") == size
    assert copy.allocated == shared.allocated + size
    assert {row.name: row.bytes for row in offloaded.on_host} == {"the teacher": size}
    assert shared.allocated <= offloaded.allocated < copy.allocated
    cached = plan_of(house, rlhf=GKD | {"teacher_cache": str(tmp_path / "cache")})
    assert "the teacher's pass" not in {row.name for row in plan_memory(cached).phases}


def test_no_knob_where_nothing_would_do(house):
    assert knobs(plan_of(house), gpu_gib=5.0) == []


@pytest.mark.parametrize(
    ("changes", "gpu_gib", "nearest"),
    [
        ({"gradient_checkpointing": False}, 40.0, "training.per_device_train_batch_size: 2"),
        (
            {"gradient_checkpointing": False, "per_device_train_batch_size": 1}, 20.0,
            "training.gradient_checkpointing: true",
        ),
        ({"per_device_train_batch_size": 1}, 9.0, "deepspeed.config: zero3_offload"),
    ],
)  # fmt: skip
def test_the_nearest_knob_fits_and_comes_first(house, changes, gpu_gib, nearest):
    plan = plan_of(house, training=changes)
    assert not plan_memory(plan).fits(gpu_gib)
    found = knobs(plan, gpu_gib=gpu_gib)
    assert str(found[0]) == nearest
    assert all(knob.memory.fits(gpu_gib) for knob in found)


def test_fewer_rows_mean_more_accumulation_and_the_same_step(house):
    plan = plan_of(house, training={"gradient_checkpointing": False})
    knob = knobs(plan, gpu_gib=40.0)[0]
    assert knob.memory.time.samples == plan_memory(plan).time.samples


def test_lengths_that_fit_are_the_longest_that_do(house):
    plan = plan_of(house, training={"gradient_checkpointing": False})
    (length,) = (knob for knob in knobs(plan, gpu_gib=40.0) if knob.key == "global_max_length")
    longer = plan_of(house, training={"gradient_checkpointing": False}, global_max_length=int(length.value) + 128)
    assert not plan_memory(longer).fits(40.0)


def test_the_longest_record_counts_where_it_is_known(house):
    plan = plan_of(house)
    assert plan_memory(plan, longest=512).allocated < plan_memory(plan).allocated
    assert plan_memory(plan, longest=9999).allocated == plan_memory(plan).allocated


def test_time_grows_with_records_and_their_length(house):
    time = plan_memory(plan_of(house, launch={"nproc_per_node": 2})).time
    assert time.tokens == 2 * 4 * 2048
    assert time.epoch_hours(1000) == pytest.approx([1000 / 8 * seconds / 3600 for seconds in time.seconds])
    assert time.epoch_hours(1000, share=0.5)[0] == pytest.approx(time.epoch_hours(500)[0])


def test_what_cannot_be_planned_is_told(house, tmp_path):
    with pytest.raises(InvalidInput, match="not for boft"):
        plan_memory(plan_of(house, ["base", "boft"]))
    bare = House(tmp_path)
    with pytest.raises(InvalidInput, match="lacks 'num_attention_heads'"):
        plan_memory(plan_of(bare))
    (write_shapes(bare.base) / "model.safetensors").unlink()
    with pytest.raises(InvalidInput, match="holds no weights"):
        plan_memory(plan_of(bare))
