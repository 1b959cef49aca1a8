"""Which process this is, how many there are, and the command that starts them."""

from __future__ import annotations

import json

import pytest
from planning import House

from vltool.errors import InvalidInput, Problem
from vltool.run.deepspeed import offloads, zero_stage
from vltool.run.ranks import VARIABLES, LaunchPlan, Place, place_in, torchrun_command, visible_gpus

TORCHRUN = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "1",
}  # fmt: skip


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return House(tmp_path)


def test_the_place_that_torchrun_gives():
    assert place_in(TORCHRUN) == Place(rank=5, local_rank=1, processes=8, on_node=4)


@pytest.mark.parametrize(
    "env", [{}, {"WORLD_SIZE": "1"}, {"MASTER_ADDR": "h", "MASTER_PORT": "1"}, {"LOCAL_WORLD_SIZE": "4"}]
)
def test_no_torchrun_is_no_place(env):
    assert place_in(env) is None


@pytest.mark.parametrize("missing", VARIABLES)
def test_a_variable_that_is_missing_is_named(missing):
    with pytest.raises(InvalidInput, match=f"but {missing} is not set"):
        place_in({name: value for name, value in TORCHRUN.items() if name != missing})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RANK": "8"}, "contradict"),
        ({"LOCAL_RANK": "4"}, "contradict"),
        ({"LOCAL_WORLD_SIZE": "9"}, "contradict"),
        ({"RANK": "x"}, "no numbers"),
    ],
)
def test_variables_that_cannot_be_are_refused(change, said):
    with pytest.raises(InvalidInput, match=said):
        place_in(TORCHRUN | change)


@pytest.mark.parametrize(("named", "gpus"), [("", []), ("-1", []), ("0", ["0"]), ("2, 5", ["2", "5"])])
def test_gpus_are_those_that_may_be_seen(named, gpus):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": named}) == gpus


def test_auto_takes_one_process_a_gpu(house):
    env = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    plan = house.plan(shell=env, launch={"nproc_per_node": "auto"}, training={"effective_batch_size": 16})
    assert plan.launch.nproc_per_node == 4
    assert plan.arguments["gradient_accumulation_steps"] * plan.arguments["per_device_train_batch_size"] == 4
    assert house.plan(shell={"CUDA_VISIBLE_DEVICES": ""}, launch={"nproc_per_node": "auto"}).launch.processes == 1


def test_auto_that_does_not_divide_the_batch_is_told(house):
    env = {"CUDA_VISIBLE_DEVICES": "0,1,2"}
    (problem,) = house.refused(shell=env, launch={"nproc_per_node": "auto"}, training={"effective_batch_size": 16})
    assert "16 is no multiple of 3 samples (1 a process x 3 processes)" in problem.what


def test_a_plan_under_torchrun_has_its_numbers(house):
    plan = house.plan(shell=TORCHRUN, training={"effective_batch_size": 16})
    assert (plan.launch.nproc_per_node, plan.launch.nnodes, plan.launch.node_rank) == (4, 2, 1)
    assert plan.arguments["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        ({"nproc_per_node": 2}, "launch.nproc_per_node: 2, but torchrun started 4"),
        ({"nnodes": 3, "master_addr": "h"}, "launch.nnodes: 3, but torchrun started 8 processes, 4 a node"),
    ],
)
def test_a_recipe_against_torchrun_is_told_at_its_line(launch, said, house):
    (problem,) = house.refused(shell=TORCHRUN, launch=launch, training={"effective_batch_size": 24})
    assert problem.what.startswith(said)
    assert str(problem.where).startswith("mine.yaml:1:")


@pytest.mark.parametrize("name", ["NPROC_PER_NODE", "NNODES", "NODE_RANK"])
def test_ms_swifts_launcher_is_not_obeyed_silently(name, house):
    (problem,) = house.refused(shell={name: "2"})
    assert f"{name}=2" in problem.what


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        ({}, ["--nproc-per-node=2", "--standalone"]),
        (
            {"nnodes": 3, "node_rank": 1, "master_addr": "h", "master_port": 7},
            ["--nproc-per-node=2", "--nnodes=3", "--node-rank=1", "--master-addr=h", "--master-port=7"],
        ),
        (
            {"nnodes": 3, "node_rank": 1, "rdzv_endpoint": "h:7", "rdzv_id": "9"},
            [
                "--nproc-per-node=2", "--nnodes=3", "--node-rank=1", "--rdzv-backend=c10d", "--rdzv-endpoint=h:7",
                "--rdzv-id=9",
            ],
        ),
    ],
)  # fmt: skip
def test_the_command_of_torchrun(launch, words):
    plan = LaunchPlan(**{"nproc_per_node": 2, "nnodes": 1, "node_rank": 0} | launch)
    _, *command = torchrun_command(plan, "a.module", ["x"])
    assert command == ["-m", "torch.distributed.run", *words, "-m", "a.module", "x"]


DEEPSPEED = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize("form", ["a mapping", "a file"])
def test_a_deepspeed_configuration_takes_its_batch_from_the_recipe(form, house):
    config = DEEPSPEED
    if form == "a file":
        (house.folder / "ds.json").write_text(json.dumps(DEEPSPEED))
        config = "./ds.json"
    plan = house.plan(deepspeed={"enabled": True, "config": config})
    got = plan.arguments["deepspeed"]
    assert got == DEEPSPEED | dict.fromkeys(
        ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "train_batch_size"),
        "auto",
    )
    assert (zero_stage(got), offloads(got)) == (2, True)


@pytest.mark.parametrize(
    ("name", "stage", "to_host"),
    [
        ("zero0", 0, False),
        ("zero2", 2, False),
        ("zero3", 3, False),
        ("zero2_offload", 2, True),
        ("zero3_offload", 3, True),
    ],
)
def test_a_named_configuration_of_deepspeed(name, stage, to_host, house):
    got = house.plan(deepspeed={"enabled": True, "config": name}).arguments["deepspeed"]
    assert (got, zero_stage(got), offloads(got)) == (name, stage, to_host)
    assert "deepspeed" not in house.plan(deepspeed={"enabled": False, "config": name}).arguments


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"gradient_accumulation_steps": 4}, "sets gradient_accumulation_steps"),
        ({"train_batch_size": 4}, "training.effective_batch_size"),
        ({"optimizer": {"type": "Adam"}}, "an optimizer or a scheduler of its own"),
        ("./list.json", "is no JSON object"),
        ("./broken.json", "cannot be read"),
    ],
)
def test_a_configuration_of_deepspeed_against_the_recipe(config, said, house):
    (house.folder / "list.json").write_text("[]")
    (house.folder / "broken.json").write_text("{")
    (problem,) = house.refused(deepspeed={"enabled": True, "config": config})
    assert isinstance(problem, Problem)
    assert said in problem.what
    assert str(problem.where).startswith("mine.yaml:1:")
