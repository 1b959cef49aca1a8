"""What a checkpoint is said to hold, for every kind there is and every way to break one."""

from __future__ import annotations

import json
import pickle
import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights import (
    ATTENTION,
    BASE,
    adapter_tensors,
    write_adapter,
    write_base,
    write_json,
    write_sharded,
    write_weights,
)

from vltool.checkpoint.bases import find_base, read_base
from vltool.checkpoint.completeness import completeness
from vltool.checkpoint.contents import read_contents
from vltool.checkpoint.difference import difference
from vltool.checkpoint.inspection import inspect
from vltool.errors import BadContent, InvalidInput


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path, base):
    return write_adapter(tmp_path / "checkpoint-7", base=base)


def test_an_adapter(adapter, base):
    found = inspect(adapter)
    assert (found.kind, found.base_name, found.tied, found.problems) == ("adapter", str(base), True, ())
    assert (found.ranks(), found.whole_modules()) == ({2: 2}, ["model.visual.merger.linear_fc1"])
    assert found.dtypes() == {"F32": 4 * (4 * 0 + 2 * 8 * 2 + 12 * 2 * 2 + 36 + 6)}
    language = found.towers()["language"]
    assert (language.tensors, language.elements, language.layers) == (4, 80, {0: 40, 1: 40})
    assert (found.towers()["aligner"].kinds, found.towers()["vision"].tensors) == ({"weight": 1, "bias": 1}, 0)
    assert (found.progress.step, found.progress.best_metric) == (7, 0.25)
    assert [file.path.name for file in found.contents.of("optimizer")] == ["optimizer.pt"]
    json.dumps(found.to_json(), allow_nan=False)


def test_a_model_whole_and_in_shards(base, tmp_path):
    write_sharded(tmp_path / "sharded")
    for folder in (base, tmp_path / "sharded"):
        found = inspect(folder)
        assert (found.kind, set(found.tensors), found.base) == ("full", set(BASE), None)
        assert found.towers()["deepstack"].layers == {1: 36}


def test_a_tuned_model_is_held_against_what_it_started_from(tmp_path, base):
    tuned = {name: shape for name, shape in BASE.items() if "norm" not in name} | {"lm_head.weight": (16, 8), "x": (1,)}
    write_base(tmp_path / "tuned", tensors=tuned | {f"{ATTENTION}.weight": (12, 9)})
    write_json(tmp_path / "tuned" / "args.json", {"model": str(base)})
    found = completeness(inspect(tmp_path / "tuned"))
    assert (found.missing, found.unexpected) == (["model.language_model.norm.weight"], ["x"])
    assert found.misshapen == [f"{ATTENTION}.weight is 12 × 9, the base's 12 × 8"]


def test_an_adapter_of_mlx(tmp_path):
    tensors = {f"{ATTENTION}.lora_a": (8, 2), f"{ATTENTION}.lora_b": (2, 12)}
    for name in ("adapters.safetensors", "0000100_adapters.safetensors"):
        write_weights(tmp_path / name, tensors)
    write_json(tmp_path / "adapter_config.json", {"model": "m/x", "lora_parameters": {"rank": 2, "scale": 10.0}})
    found = inspect(tmp_path)
    assert (found.kind, found.config.tool, found.ranks(), found.problems) == ("adapter", "mlx", {2: 1}, ())
    assert completeness(found).missing == []


def test_a_lycoris_adapter_without_a_configuration(tmp_path):
    write_weights(tmp_path / "style.safetensors", {"lora_te_layers_0_q.lora_down.weight": (2, 8),
                                                   "lora_te_layers_0_q.lora_up.weight": (9, 2)})  # fmt: skip
    found = inspect(tmp_path)
    assert (found.kind, found.ranks()) == ("adapter", {2: 1})
    assert [problem.id for problem in found.problems] == ["ckpt-adapter-config"]


def test_an_adapter_as_peft_saves_it_is_complete(tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.norm = torch.nn.Linear(8, 12, bias=False), torch.nn.LayerNorm(8)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer(), Layer()])

    model = Model()
    weights = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    write_base(tmp_path / "base", tensors=weights)
    for kind, config in {
        "lora": peft.LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["norm"], use_dora=True),
        "boft": peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
        "loha": peft.LoHaConfig(r=2, target_modules=["q_proj"], module_dropout=0.0),
        "vera": peft.VeraConfig(r=4, target_modules=["q_proj"]),
    }.items():
        peft.get_peft_model(Model(), config).save_pretrained(str(tmp_path / kind))
        found = inspect(tmp_path / kind, base=tmp_path / "base")
        told = completeness(found)
        assert (found.kind, told.missing, told.misshapen, told.ranks) == ("adapter", [], [], []), kind
        assert [name for name in told.unexpected if "vera_" not in name] == [], kind


def test_pickles_are_never_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("x",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "optimizer.pt").write_bytes(pickle.dumps(Evil()))
    assert inspect(tmp_path).kind == "pickled"
    assert not (tmp_path / "ran").exists()


def test_folders_that_are_no_checkpoints(tmp_path, adapter):
    with pytest.raises(InvalidInput, match="no such checkpoint folder"):
        inspect(tmp_path / "gone")
    with pytest.raises(InvalidInput, match="is a file"):
        inspect(adapter / "optimizer.pt")
    # As in a run folder.
    (tmp_path / "last-checkpoint").symlink_to(adapter)
    write_weights(tmp_path / "probe.safetensors", {"logits": (4,)})
    with pytest.raises(InvalidInput, match="checkpoint-7"):
        inspect(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InvalidInput, match="cannot be read"):
        inspect(tmp_path / "loop")


def test_a_checkpoint_that_was_only_begun_is_called_broken(tmp_path):
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA"})
    assert inspect(tmp_path).kind == "broken"


def test_a_header_of_a_hundred_megabytes_is_named_and_not_read(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((99_000_000).to_bytes(8, "little") + b"{")
        file.truncate(99_000_100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = inspect(tmp_path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 10_000_000
    assert (found.kind, [problem.id for problem in found.problems]) == ("broken", ["ckpt-header"])
    assert "header of 99 MB" in found.problems[0].what


def test_shards_of_training_lie_deeper(tmp_path):
    (tmp_path / "global_step5").mkdir()
    (tmp_path / "global_step5" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"x")
    (tmp_path / "latest").write_text("global_step5")
    assert [file.purpose for file in read_contents(tmp_path).files] == ["deepspeed shard", "other"]
    assert inspect(tmp_path).kind == "deepspeed shards"


def test_a_base_is_found_by_path_and_in_the_caches(tmp_path):
    snapshot = write_base(tmp_path / "hf" / "models--Qwen--X" / "snapshots" / "abc")
    scope = write_base(tmp_path / "scope" / "models" / "Qwen" / "Y")
    beside = write_base(tmp_path / "run" / "base")
    env = {"HF_HUB_CACHE": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "scope")}
    found = [find_base(name, beside=tmp_path / "run", env=env) for name in ("Qwen/X", "Qwen/Y", "base", str(snapshot))]
    assert found == [snapshot, scope, beside, snapshot]
    for name in (None, "", "Qwen/Z", "a" * 5000, "a\0b"):
        assert find_base(name, beside=tmp_path, env=env) is None


def test_a_base_of_which_only_the_index_is_here_gives_names(tmp_path):
    shards = write_sharded(tmp_path)
    for shard in shards:
        shard.unlink()
    found = read_base(tmp_path)
    assert (set(found.tensors), len(found.absent_shards)) == (set(BASE), 2)
    assert set(found.tensors.values()) == {None}
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(BadContent, match="no weights"):
        read_base(tmp_path)


def test_differences_are_told_by_name_form_and_value(tmp_path, adapter, base):
    same = write_adapter(tmp_path / "same", base=base)
    assert not difference(inspect(adapter), inspect(same), values=True)
    changed = adapter_tensors() | {f"base_model.model.{ATTENTION}.lora_B.weight": (12, 3), "base_model.model.x": (1,)}
    changed.pop("base_model.model.model.visual.merger.linear_fc1.bias")
    other = write_adapter(tmp_path / "other", base=base, tensors=changed, r=3)
    found = difference(inspect(adapter), inspect(other))
    assert (found.fields, found.only_a) == ({"rank": (2, 3)}, ("model.visual.merger.linear_fc1.bias",))
    assert (found.only_b, found.values) == (("x",), None)
    assert found.changed == {f"{ATTENTION}.lora_B.weight": ("F32 12 × 2", "F32 12 × 3")}
    content = bytearray((same / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (same / "adapter_model.safetensors").write_bytes(content)
    found = difference(inspect(adapter), inspect(same), values=True)
    assert found.values == ("model.visual.merger.linear_fc1.bias",)


FILES = ("adapter_model.safetensors", "adapter_config.json", "trainer_state.json", "optimizer.pt")


@given(st.lists(st.tuples(st.sampled_from(FILES), st.integers(0, 400), st.binary(max_size=6)), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_ends_in_a_traceback(tmp_path, damage):
    base = write_base(tmp_path / "base")
    folder = write_adapter(tmp_path / "run", base=base)
    for name, at, piece in damage:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:at] + piece + (content[at + len(piece) :] if at % 2 else b""))
    found = inspect(folder)
    completeness(found)
    json.dumps(found.to_json(), allow_nan=False)
