"""A merged base: complete, stored as its base is, and this stage's from the first step on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from peft import AdaLoraConfig, BOFTConfig, FourierFTConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from vltool.checkpoint.architecture import read_architecture
from vltool.checkpoint.census import INDEX, take_census
from vltool.errors import RunFailed
from vltool.recipe.validate import load_recipe
from vltool.run import launch
from vltool.run.evidence import Evidence
from vltool.run.merge import FILE_NAME, is_merged, read_merge
from vltool.run.plan import make_plan
from vltool.training import merge as merging
from vltool.training.probe import load_probe, logits_at
from vltool.training.tiny import make_tiny

FORWARD = {"rlhf_type": "gkd", "sft_alpha": 1.0, "beta": 0.1, "lmbda": 0.0, "seq_kd": False}
QUERY = "model.language_model.layers.0.self_attn.q_proj"


def tensors_of(folder):
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """The tiny checkpoint in bfloat16 but for one tensor, in shards, with files that only their owner knows."""
    folder = tmp_path_factory.mktemp("half")
    model = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.bfloat16)
    model.model.visual.merger.norm.weight.data = model.model.visual.merger.norm.weight.data.float()
    model.save_pretrained(folder, max_shard_size="100KB")
    for file in Path(tiny).iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "README.md").write_text("ours")
    (folder / "optimizer.pt").write_bytes(b"large")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("")
    assert (folder / INDEX).is_file()
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=[QUERY]))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def plan(base, adapter, tmp_path):
    return read_merge(
        adapter, tmp_path / "deep" / "merged", base=base, architecture=read_architecture(base),
        run_dir=tmp_path / "run", at_checkpoint=None, at_folder=None,
    )  # fmt: skip


def test_what_the_adapter_changes_is_rounded_once_and_the_rest_is_untouched(plan, base, adapter):
    merging.merge(plan)
    before, after = tensors_of(base), tensors_of(Path(plan.folder))
    assert {name: tensor.dtype for name, tensor in before.items()} == {n: t.dtype for n, t in after.items()}
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16, torch.float32}
    factors = load_file(adapter / "adapter_model.safetensors")
    down, up = (factors[f"base_model.model.{QUERY}.lora_{part}.weight"] for part in "AB")
    name = f"{QUERY}.weight"
    assert torch.equal(after.pop(name), (before[name].float() + 2.0 * up @ down).bfloat16())
    assert after
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_all_but_the_weights_is_copied(plan, base):
    merging.merge(plan)
    folder = Path(plan.folder)
    left = {"optimizer.pt", ".cache/x", INDEX}
    weights = {file.name for file in base.glob("*.safetensors")}
    wanted = {str(file.relative_to(base)) for file in base.rglob("*") if file.is_file()} - left - weights
    assert {"config.json", "generation_config.json", "tokenizer.json", "notes/README.md"} <= wanted
    for name in wanted:
        assert (folder / name).read_bytes() == (base / name).read_bytes(), name
    more = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - wanted
    assert more == {FILE_NAME, "model.safetensors"}
    assert json.loads((folder / FILE_NAME).read_text())["checkpoint_files"][0]["path"].endswith("adapter_config.json")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_it_is_done_once(plan, monkeypatch):
    merging.merge(plan)
    assert is_merged(plan)
    monkeypatch.setattr(merging, "_merged", None)
    merging.merge(plan)


def test_a_failure_leaves_nothing(plan, monkeypatch):
    monkeypatch.setattr(merging, "_same_tensors", lambda *_: (_ for _ in ()).throw(RunFailed("not the same")))
    with pytest.raises(RunFailed, match="not the same"):
        merging.merge(plan)
    assert list(Path(plan.folder).parent.iterdir()) == []


def test_a_result_with_other_tensors_is_refused(base, tiny):
    with pytest.raises(RunFailed, match=r"are not as the base has them, the first: .*F32.* in place of .*BF16"):
        merging._same_tensors(take_census(base), take_census(Path(tiny)))


def test_a_folder_that_was_filled_meanwhile_is_left_alone(plan):
    Path(plan.folder).mkdir(parents=True)
    (Path(plan.folder) / "mine").write_text("")
    with pytest.raises(RunFailed, match="cannot be written"):
        merging.merge(plan)
    assert [str(path) for path in Path(plan.folder).parent.iterdir()] == [plan.folder]
    assert [path.name for path in Path(plan.folder).iterdir()] == ["mine"]


ON = {"target_modules": ["q_proj", "linear_fc2"]}
KINDS = {
    "LoRA and copies": lambda: LoraConfig(
        r=3, modules_to_save=["model.visual.merger.linear_fc1", "layers.1.mlp"], **ON
    ),
    "rsLoRA of several ranks": lambda: LoraConfig(r=3, use_rslora=True, rank_pattern={"q_proj": 2}, **ON),
    "LoRA with all biases": lambda: LoraConfig(r=3, bias="all", **ON),
    "DoRA": lambda: LoraConfig(r=3, use_dora=True, **ON),
    "AdaLoRA": lambda: AdaLoraConfig(init_r=4, target_r=2, total_step=9, modules_to_save=["linear_fc1"], **ON),
    "BOFT": lambda: BOFTConfig(boft_block_size=4, **ON),
    "FourierFT": lambda: FourierFTConfig(n_frequency=16, **ON),
}  # fmt: skip


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("moe"), texts=("a red square",), moe=True)


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("name", KINDS)
def test_a_merged_model_is_the_adapted_one(name, kind, tiny, moe, tmp_path):
    folder = {"dense": Path(tiny), "moe": moe}[kind]
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32), KINDS[name]())
    torch.manual_seed(3)
    inputs = {"input_ids": torch.arange(12).reshape(2, 6)}
    with torch.no_grad():
        before = model.eval()(**inputs).logits
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.05
        want = model(**inputs).logits
    model.save_pretrained(tmp_path / "adapter")
    plan = read_merge(
        tmp_path / "adapter", tmp_path / "merged", base=folder, architecture=read_architecture(folder),
        run_dir=tmp_path / "run", at_checkpoint=None, at_folder=None,
    )  # fmt: skip
    merging.merge(plan)
    alone = AutoModelForImageTextToText.from_pretrained(plan.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        got = alone(**inputs).logits
    assert torch.allclose(got, want, atol=1e-5)
    assert not torch.allclose(before, want, atol=1e-4)


STAGES = {
    "LoRA, then DoRA on the aligner": ("base", {}, ["stage1_aligner_lora", "dora"], {}),
    "LoRA, then a smaller rank": ("base", {}, "stage2_llm_lora", {"lora_rank": 2, "lora_alpha": 4}),
    "PiSSA, then in full": ("base", {"init_weights": "pissa"}, ["stage1_aligner_lora", "full"], {}),
    "BOFT, then PiSSA": (["base", "boft"], {}, "stage1_aligner_lora", {"init_weights": "pissa"}),
}  # fmt: skip


def evaluations(run):
    return [row["eval/sft_loss"] for row in run.rows if "eval/sft_loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_goes_on_from_the_merged_base_with_the_original_as_its_teacher(name, overlay, train, tiny, tmp_path):
    first, first_tuner, second, second_tuner = STAGES[name]
    eager = {"eval_on_start": True}
    earlier = train(
        overlay(first, "one", tuner=first_tuner, training=eager | {"output_dir": str(tmp_path / "run1")}), probe=True
    )
    merged = tmp_path / "merged"
    tuner = {"resume_from_checkpoint": earlier.outcome["last_checkpoint"], "merge_previous": str(merged)}
    recipe = overlay(
        second, "two", tuner=tuner | second_tuner, rlhf=FORWARD,
        training=eager | {"output_dir": str(tmp_path / "run2")},
    )  # fmt: skip
    later = train(recipe, probe=True)

    assert evaluations(later)[0] == pytest.approx(evaluations(earlier)[-1], abs=1e-5)
    assert evaluations(earlier)[0] != pytest.approx(evaluations(earlier)[-1], abs=1e-5)
    assert (later.plan.distillation.teacher, later.plan.distillation.teacher_model) == ("copy", str(tiny))
    seen = Evidence.read(later.run_dir)
    # Above what PiSSA's decomposition loses to rounding, which test_modes holds below 1e-9.
    assert seen.kd_at_start > 1e-8
    assert seen.carried is None
    assert seen.tower_problems == seen.gradient_problems == seen.frozen_changed == []

    inputs, at_P2, want = load_probe(earlier.run_dir)
    alone = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).eval()
    with torch.no_grad():
        got = logits_at(alone, inputs, at_P2)
    assert float((got - want).abs().max()) <= 1e-5 * float(want.abs().max())
    checkpoint = Path(later.outcome["last_checkpoint"])
    again = launch.reload(later.run_dir, checkpoint)
    assert Path(again["base"]) == (checkpoint if "full" in second else merged)
    assert again["difference"] <= 1e-5 * again["scale"]

    # The same recipe again takes the folder as it is.
    assert is_merged(make_plan(load_recipe(str(recipe)), cwd=tmp_path, to_show=True).merge)
