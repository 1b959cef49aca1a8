"""What a checkpoint folder is, from headers alone, and which one a run can go on from."""

from __future__ import annotations

import json
import struct

import pytest

from vltool.checkpoint.census import last_complete, take_census
from vltool.errors import BadContent, InvalidInput

ADAPTER = {
    "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight": [2, 8],
    "base_model.model.model.visual.merger.linear_fc1.lora_B.weight": [5, 2],
    "base_model.model.model.visual.deepstack_merger_list.0.linear_fc1.weight": [3],
    "base_model.model.model.visual.blocks.3.attn.qkv.lora_A.weight": [2, 7],
}
FULL = {"model.language_model.norm.weight": [8], "lm_head.weight": [4, 8], "model.visual.pos_embed.weight": [6]}


def write_weights(path, tensors):
    """A .safetensors file of zeros in bf16."""
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(end))


def write_adapter(folder, tensors=ADAPTER, base="/models/base"):
    write_weights(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))


def write_sharded(folder):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = dict(zip(FULL, [shards[0], shards[0], shards[1]], strict=True))
    for shard in shards:
        write_weights(folder / shard, {name: FULL[name] for name in FULL if places[name] == shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return [folder / shard for shard in shards]


def test_an_adapter(tmp_path):
    write_adapter(tmp_path)
    census = take_census(tmp_path)
    assert (census.kind, census.base, census.folder) == ("adapter", "/models/base", str(tmp_path))
    assert {name: list(info.shape) for name, info in census.tensors.items()} == ADAPTER
    assert census.per_tower() == {"vision": 14, "aligner": 10, "deepstack": 3, "language": 16, "head": 0}


def test_a_full_model(tmp_path):
    write_weights(tmp_path / "model.safetensors", FULL)
    census = take_census(tmp_path)
    assert (census.kind, census.base) == ("full", None)
    assert census.per_tower() == {"vision": 6, "aligner": 0, "deepstack": 0, "language": 8, "head": 32}


def test_both_at_once(tmp_path):
    write_adapter(tmp_path)
    write_weights(tmp_path / "model.safetensors", FULL)
    census = take_census(tmp_path)
    assert census.kind == "adapter and full"
    assert census.tensors.keys() == ADAPTER.keys() | FULL.keys()


def test_a_sharded_model_counts_once_and_whole(tmp_path):
    _, second = write_sharded(tmp_path)
    census = take_census(tmp_path)
    assert census.kind == "full"
    assert census.tensors.keys() == FULL.keys()
    second.unlink()
    with pytest.raises(BadContent, match="lacks model-00002-of-00002"):
        take_census(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}'])
def test_a_broken_index(index, tmp_path):
    write_sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadContent, match=r"model\.safetensors\.index\.json"):
        take_census(tmp_path)


def test_an_adapter_within_a_base_model_is_not_looked_for(tmp_path):
    write_adapter(tmp_path / "deeper")
    write_weights(tmp_path / "model.safetensors", FULL)
    assert take_census(tmp_path).kind == "full"


def test_no_weights(tmp_path):
    with pytest.raises(InvalidInput, match="no such checkpoint folder"):
        take_census(tmp_path / "gone")
    with pytest.raises(InvalidInput, match="holds no weights"):
        take_census(tmp_path)
    write_weights(tmp_path / "probe.safetensors", {"logits": [4]})
    with pytest.raises(InvalidInput, match="holds no weights"):
        take_census(tmp_path)


def test_files_beside_the_weights_do_not_count(tmp_path):
    write_adapter(tmp_path)
    write_weights(tmp_path / "probe.safetensors", {"logits": [4]})
    assert take_census(tmp_path).tensors.keys() == ADAPTER.keys()


@pytest.mark.parametrize(
    ("config", "words"),
    [(None, "is missing"), ("{", "is no JSON"), ("[]", "holds no JSON object"), ('{"a":' * 10**5, "is no JSON")],
)
def test_an_adapter_without_its_config(config, words, tmp_path):
    write_adapter(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.unlink()
    if config is not None:
        path.write_text(config)
    with pytest.raises(BadContent, match=words):
        take_census(tmp_path)


@pytest.fixture
def run_dir(tmp_path):
    """A run folder with complete checkpoints 9, 10 and 100, and what else lies in one."""
    for step in (9, 10, 100):
        complete(tmp_path / f"checkpoint-{step}")
    (tmp_path / "logging.jsonl").write_text("")
    complete(tmp_path / ".saving" / "checkpoint-200")
    complete(tmp_path / "checkpoint-final")
    complete(tmp_path / "checkpoint-²")
    complete(tmp_path / "checkpoint-")
    complete(tmp_path / "checkpoint-300.saving")
    (tmp_path / "checkpoint-400").write_text("a file")
    (tmp_path / "last-checkpoint").symlink_to(tmp_path / "checkpoint-9")
    (tmp_path / "best-checkpoint").symlink_to(tmp_path / "gone")
    (tmp_path / "checkpoint-500").symlink_to(tmp_path / "gone")
    return tmp_path


def complete(folder):
    write_adapter(folder)
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "trainer_state.json").write_text('{"global_step": 1}')


def test_the_newest_complete_checkpoint_is_that_of_the_highest_step(run_dir):
    assert last_complete(run_dir) == run_dir / "checkpoint-100"


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


BREAK = {
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "no state": lambda folder: (folder / "trainer_state.json").unlink(),
    "half a state": lambda folder: cut(folder / "trainer_state.json"),
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "half the weights": lambda folder: cut(folder / "adapter_model.safetensors"),
    "no adapter config": lambda folder: (folder / "adapter_config.json").unlink(),
    "a missing shard": lambda folder: write_sharded(folder)[1].unlink(),
    "dangling weights": lambda folder: (folder / "model.safetensors").symlink_to(folder / "gone"),
}


@pytest.mark.parametrize("name", BREAK)
def test_half_written_checkpoints_are_passed_over(name, run_dir):
    BREAK[name](run_dir / "checkpoint-100")
    assert last_complete(run_dir) == run_dir / "checkpoint-10"


def test_none(tmp_path, run_dir):
    assert last_complete(tmp_path / "gone") is None
    assert last_complete(run_dir / "logging.jsonl") is None
    for step in (9, 10, 100):
        (run_dir / f"checkpoint-{step}" / "optimizer.pt").unlink()
    assert last_complete(run_dir) is None
