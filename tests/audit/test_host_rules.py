"""Hosts, as plain values, against plans over a base of the 4B shape: each finding, and the host without it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from planning import House, write_adapter
from shapes import write_shapes

from vltool.audit.disk_rules import checkpoints_at_once, folders_of
from vltool.audit.host import Disk, Gpu, Host
from vltool.audit.host_rules import RULES, judge_host
from vltool.audit.installed import Requirement
from vltool.audit.memory_plan import GIB

H100 = Gpu(index=0, name="H100", memory=80 * GIB, capability=(9, 0))
PACKAGES = {
    "torch": "2.11.0", "transformers": "5.19.0", "peft": "0.20.0", "ms-swift": "4.6.0", "trl": "0.29.1",
    "deepspeed": "0.19.8", "flash-attn": "2.8.3", "bitsandbytes": "0.50.2",
}  # fmt: skip
DISK = Disk(device=1, free=500 * GIB, kind="ext4")
GOOD = Host(
    packages=PACKAGES,
    requirements=(Requirement(of="vltool", name="transformers", specifier="<5.20,>=5.17"),),
    torch_cuda="13.0",
    driver="580.65.06",
    gpus=tuple(replace(H100, index=index) for index in range(8)),
    cpus=64,
    memory=512 * GIB,
    shm_free=64 * GIB,
    open_files=65536,
    open_files_most=65536,
)
"""A host on which nothing is wrong, but for its disks, whose folders depend on the plan."""
EIGHT = {"launch": {"nproc_per_node": 8}}
NODES = {"launch": {"nproc_per_node": 8, "nnodes": 2, "node_rank": 0, "master_addr": "a"}}
ZERO2 = {"deepspeed": {"enabled": True, "config": "zero2"}}
FLASH = {"model": {"attn_impl": "flash_attention_2"}}
FREE = {"training": {"save_total_limit": None, "max_steps": 100, "save_steps": 10}}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("house"))
    write_shapes(house.base)
    return house


def judged(house, host=GOOD, *, disk=DISK, source="base", records=None, **sections):
    plan = house.plan(source, **sections)
    host = replace(host, disks=dict.fromkeys(map(str, folders_of(plan)), disk) | dict(host.disks))
    return judge_host(plan, host, records=records)


def without(*names):
    return replace(GOOD, packages={name: version for name, version in PACKAGES.items() if name not in names})


def having(**versions):
    return replace(GOOD, packages=PACKAGES | {name.replace("_", "-"): version for name, version in versions.items()})


def saying(**variables):
    return replace(GOOD, environment=variables)


def all_gpus(**changed):
    return replace(GOOD, gpus=tuple(replace(gpu, **changed) for gpu in GOOD.gpus))


# rule -> (host, sections, severity), (host, sections) without it
CASES = [
    ("host-stack", "note", Host(gpus=GOOD.gpus, cpus=64), {}, GOOD, {}),
    ("host-gpu", "note", replace(GOOD, gpus=()), {}, replace(GOOD, gpus=()), {"training": {"use_cpu": True}}),
    ("host-gpus", "error", replace(GOOD, gpus=(H100,)), EIGHT, GOOD, EIGHT),
    ("host-gpus", "error", saying(CUDA_VISIBLE_DEVICES="0,1"), EIGHT, saying(CUDA_VISIBLE_DEVICES="1"), {}),
    ("host-gpu-busy", "warning", all_gpus(used=30 * GIB), {}, all_gpus(used=4 * 2**20), {}),
    (
        "host-gpu-busy", "warning", replace(GOOD, gpus=(replace(H100, used=GIB), *GOOD.gpus[1:])), {},
        replace(GOOD, gpus=(replace(H100, used=GIB), *GOOD.gpus[1:]), environment={"CUDA_VISIBLE_DEVICES": "3"}), {},
    ),
    ("host-bf16", "warning", all_gpus(capability=(7, 5)), {}, all_gpus(capability=(8, 0)), {}),
    (
        "host-bf16", "warning", all_gpus(capability=(7, 0)), {}, all_gpus(capability=(7, 0)),
        {"training": {"bf16": False}, "model": {"torch_dtype": "float32"}},
    ),
    ("host-flash-attn", "error", without("flash-attn"), FLASH, GOOD, FLASH),
    ("host-flash-attn", "error", all_gpus(capability=(7, 5)), FLASH, all_gpus(capability=(7, 5)), {}),
    ("host-flash-attn", "error", without("flash-attn"), FLASH, without("flash-attn"), {}),
    (
        "host-flash-attn", "error", without("flash-attn"), FLASH,
        replace(GOOD, packages=dict(without("flash-attn").packages) | {"kernels": "0.17.0"}), FLASH,
    ),
    ("host-deepspeed", "error", without("deepspeed"), ZERO2, without("deepspeed"), {}),
    (
        "host-bitsandbytes", "error", without("bitsandbytes"),
        {"quantization": {"quant_method": "bnb", "quant_bits": 4}}, without("bitsandbytes"), {},
    ),
    ("host-shm", "error", replace(GOOD, shm_free=16 * 2**20), {}, GOOD, {}),
    ("host-shm", "warning", replace(GOOD, shm_free=64 * 2**20), {}, replace(GOOD, shm_free=400 * 2**20), {}),
    (
        "host-shm", "error", replace(GOOD, shm_free=16 * 2**20), {}, replace(GOOD, shm_free=16 * 2**20),
        {"data": {"dataloader_num_workers": 0}},
    ),
    ("host-workers", "warning", replace(GOOD, cpus=16), EIGHT, replace(GOOD, cpus=32), EIGHT),
    (
        "host-open-files", "warning", replace(GOOD, open_files=1024), {"data": {"dataloader_num_workers": 32}},
        replace(GOOD, open_files=1024), {"data": {"dataloader_num_workers": 8}},
    ),
    (
        "host-memory", "warning", replace(GOOD, memory=6 * GIB),
        {"deepspeed": {"enabled": True, "config": "zero3_offload"}}, GOOD,
        {"deepspeed": {"enabled": True, "config": "zero3_offload"}},
    ),
    ("host-nccl", "warning", saying(NCCL_P2P_DISABLE="1"), EIGHT, saying(NCCL_P2P_DISABLE="0"), EIGHT),
    ("host-nccl", "warning", saying(NCCL_P2P_LEVEL="LOC"), EIGHT, saying(NCCL_P2P_LEVEL="NVL"), EIGHT),
    ("host-nccl", "warning", saying(NCCL_IB_DISABLE="1"), NODES, saying(NCCL_IB_DISABLE="1"), EIGHT),
    ("host-nccl", "warning", GOOD, {"launch": {"nproc_per_node": 8, "env": {"NCCL_SHM_DISABLE": "1"}}}, GOOD, EIGHT),
    ("host-nccl-debug", "warning", saying(NCCL_DEBUG="info"), EIGHT, saying(NCCL_DEBUG="WARN"), EIGHT),
    ("host-nccl-debug", "warning", saying(CUDA_LAUNCH_BLOCKING="1"), {}, saying(CUDA_LAUNCH_BLOCKING="0"), {}),
    (
        "host-nccl-errors", "warning", saying(TORCH_NCCL_ASYNC_ERROR_HANDLING="0"), EIGHT,
        saying(TORCH_NCCL_ASYNC_ERROR_HANDLING="3"), EIGHT,
    ),
    ("host-locked-memory", "warning", replace(GOOD, locked_memory=2**16), NODES, GOOD, NODES),
    ("host-packages", "warning", having(transformers="5.21.0"), {}, having(transformers="5.18.2"), {}),
    ("host-peft-import", "error", having(peft="0.17.1"), {}, having(peft="0.18.0"), {}),
    ("host-conv3d", "warning", having(torch="2.9.0", ms_swift="4.5.0"), {}, having(torch="2.9.0"), {}),
    (
        "host-conv3d", "warning", having(torch="2.9.1", ms_swift="4.5.0", cudnn="9.10.2.21"), {},
        having(torch="2.9.1", ms_swift="4.5.0", cudnn="9.15.1"), {},
    ),
    ("host-conv3d", "warning", having(torch="2.9.0", ms_swift="4.5"), {}, having(torch="2.10.0", ms_swift="4.5"), {}),
    ("host-zero2-gradients", "error", having(deepspeed="0.18.2"), ZERO2, having(deepspeed="0.18.3"), ZERO2),
    (
        "host-zero2-gradients", "error", having(deepspeed="0.17.6"), ZERO2, having(deepspeed="0.17.6"),
        {"deepspeed": {"enabled": True, "config": "zero3"}},
    ),
    ("host-flash-attn-build", "warning", having(flash_attn="2.7.4.post1"), FLASH, GOOD, FLASH),
    ("host-driver", "error", replace(GOOD, driver="570.1"), {}, replace(GOOD, driver="570.1", torch_cuda="12.8"), {}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_host_has_a_finding_or_not(house, case):
    rule, severity, bad, sections, good, others = case
    (found,) = [finding for finding in judged(house, bad, **sections) if finding.id == rule]
    assert found.severity == severity
    assert found.what
    assert found.remedy
    assert not [finding for finding in judged(house, good, **others) if finding.id == rule]


def test_nothing_is_said_of_a_good_host(house):
    for sections in ({}, EIGHT, NODES, ZERO2, FLASH):
        disk = replace(DISK, kind="nfs4") if sections is NODES else DISK
        assert judged(house, disk=disk, **sections) == []


def test_every_rule_has_a_case():
    beside = {"host-disk", "host-run-folder"}
    assert {rule.id for rule in RULES} == {case[0] for case in CASES} | beside
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert all(re.fullmatch(r"host-[a-z0-9-]+", rule.id) and rule.why and rule.remedy for rule in RULES)


def test_a_host_that_does_not_train_is_not_judged_as_one_that_does(house):
    laptop = Host(cpus=1, memory=GIB, shm_free=GIB // 1024, open_files=16)
    assert judged(house, laptop, **ZERO2, **FLASH) == []
    found = judged(house, replace(laptop, packages={"torch": "2.11.0"}))
    assert [(finding.id, finding.severity) for finding in found] == [("host-gpu", "note")]


def test_findings_stand_at_the_recipe_s_line(house):
    (found,) = [f for f in judged(house, without("flash-attn"), **FLASH) if f.id == "host-flash-attn"]
    assert found.where.file.endswith("mine.yaml")
    assert found.where.line == 1


def test_shared_memory_says_its_numbers(house):
    (found,) = [f for f in judged(house, replace(GOOD, shm_free=64 * 2**20)) if f.id == "host-shm"]
    # 4,096 patches of 1,536 values in fp32 and 4,096 tokens, 2 ahead and one in the making, 4 workers.
    assert "4 workers with 2 batches ahead" in found.what
    assert "25 MiB" in found.what
    assert "has 64 MiB free" in found.what


def of_disk(found):
    return [finding for finding in found if finding.id == "host-disk"]


def test_a_disk_that_fills_is_an_error_with_its_numbers(house):
    # r 32 on the language model: 66,060,288 elements in fp32, and two moments.
    size = 3 * 4 * 66_060_288
    assert of_disk(judged(house, disk=replace(DISK, free=4 * size))) == []
    (found,) = of_disk(judged(house, disk=replace(DISK, free=4 * size - 1)))
    assert found.severity == "error"
    assert "4 checkpoints of 756 MiB" in found.what
    assert "252 MiB of weights, 504 MiB of the optimizer's state" in found.evidence
    assert found.where.file.endswith("base.yaml")


def test_a_short_run_writes_fewer_checkpoints_than_it_may_keep(house):
    plan = house.plan(training={"max_steps": 20, "save_steps": 10})
    assert checkpoints_at_once(plan) == 2
    assert checkpoints_at_once(house.plan()) == 4
    assert checkpoints_at_once(house.plan(training={"save_total_limit": 1})) == 2
    best = {"save_total_limit": 1, "metric_for_best_model": "eval_loss"}
    assert checkpoints_at_once(house.plan(training=best, custom={"val_jsonl": str(house.val)})) == 3
    assert checkpoints_at_once(house.plan(**FREE)) == 10
    kept = {"save_total_limit": None}
    assert checkpoints_at_once(house.plan(training=kept)) is None
    # 3 epochs of 6,400 records in batches of 16 are 1,200 steps.
    assert checkpoints_at_once(house.plan(training=kept), records=6400) == 6
    by_epoch = kept | {"save_strategy": "epoch", "save_steps": None, "eval_strategy": "epoch", "eval_steps": None}
    assert checkpoints_at_once(house.plan(training=by_epoch)) == 3


def test_a_disk_without_room_for_many_is_a_warning_where_none_is_deleted(house):
    kept = {"training": {"save_total_limit": None}}
    (found,) = of_disk(judged(house, disk=replace(DISK, free=10 * GIB), **kept))
    assert found.severity == "warning"
    assert "room for 13" in found.what
    assert of_disk(judged(house, disk=replace(DISK, free=100 * GIB), **kept)) == []


def test_a_resumed_run_needs_room_for_one_more(house, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-10"
    write_adapter(checkpoint, house.base)
    for name in ("trainer_state.json", "optimizer.pt"):
        (checkpoint / name).write_text("{}")
    resumed = {"training": {"resume_from_checkpoint": str(checkpoint)}}
    assert of_disk(judged(house, disk=replace(DISK, free=GIB), **resumed)) == []
    assert of_disk(judged(house, disk=replace(DISK, free=GIB))) != []


def test_full_tuning_saves_the_whole_model(house):
    plan = house.plan(["base", "full"], tuner={"freeze_llm": False})
    disks = {str(folder): DISK for folder in folders_of(plan)}
    (found,) = of_disk(judge_host(plan, replace(GOOD, disks=dict.fromkeys(disks, replace(DISK, free=50 * GIB)))))
    assert "8.3 GiB of weights" in found.evidence
    assert "15.0 GiB of the optimizer's state" in found.evidence


def test_a_teacher_cache_needs_room_on_its_disk(house, tmp_path):
    gkd = {"rlhf": {"rlhf_type": "gkd", "lmbda": 0.0, "seq_kd": False, "teacher_cache": str(tmp_path / "cache")}}
    tight = replace(DISK, free=10 * GIB)
    assert of_disk(judged(house, disk=tight, records=100, **gkd)) == []
    (found,) = of_disk(judged(house, disk=tight, records=100_000, **gkd))
    assert "of the teacher's log-probabilities" in found.what


@pytest.mark.parametrize(("kind", "sections", "told"), [
    ("tmpfs", {}, "lies in memory"), ("xfs", NODES, "this node's own disk"), ("nfs4", NODES, None), ("xfs", {}, None),
])  # fmt: skip
def test_a_run_folder_lies_where_its_nodes_see_it(house, kind, sections, told):
    found = [f for f in judged(house, disk=replace(DISK, kind=kind), **sections) if f.id == "host-run-folder"]
    assert bool(found) is (told is not None)
    assert all(told in finding.what for finding in found)


def test_a_base_that_cannot_be_read_leaves_its_sizes_out(tmp_path):
    house = House(tmp_path)
    assert judged(house, disk=replace(DISK, free=0)) == []
    assert Path(house.base).is_dir()


def test_a_run_folder_that_cannot_be_written_to_is_an_error(house):
    (found,) = (f for f in judged(house, disk=replace(DISK, writable=False)) if f.id == "host-run-folder")
    assert found.severity == "error"
    assert "cannot be written to" in found.what
