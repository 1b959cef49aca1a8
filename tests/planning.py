"""Recipes over a base checkpoint of which only config.json exists, and their plans."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vltool.errors import InvalidInput
from vltool.recipe.resolve import shipped_recipes
from vltool.recipe.validate import load_recipe
from vltool.run.plan import make_plan

NOW = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
WHOLE = sorted(
    name
    for name, file in shipped_recipes().items()
    if re.search("^(extends|global_max_length):", file.read_text(), re.MULTILINE)
)
"""Shipped recipes that can be run by themselves; the others are overlays."""


MINIMAL = "global_max_length: 64\nmodel: {model: /m}\ncustom:\n  train_jsonl: /t.jsonl\n"
"""A recipe in four lines; whatever a test adds begins in line 5, inside `custom` where it is indented."""


def written(text, env=()):
    """The recipe of a text, in r.yaml in the working directory."""
    Path("r.yaml").write_text(text)
    return load_recipe("r.yaml", env=dict(env))


def problems_of(text, env=()):
    """Its problems, as its user reads them; none when it loads."""
    try:
        written(text, env)
    except InvalidInput as error:
        return [str(problem) for problem in error.problems]
    return []


def notes_of(text, env=()):
    """The notes of a recipe that loads, as its user reads them."""
    return [str(note) for note in written(text, env).notes]


def write_config(folder, *, depth=24, vocab_size=151936, model_type="qwen3_vl"):
    """A checkpoint folder as far as a plan looks at it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": model_type,
        "vision_config": {
            "depth": depth, "deepstack_visual_indexes": [1, 2, 3], "patch_size": 16, "spatial_merge_size": 2,
        },
        "text_config": {"num_hidden_layers": 36, "hidden_size": 2560, "vocab_size": vocab_size},
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_checkpoint(folder):
    """A checkpoint folder from which a run can go on, as far as anyone looks at it."""
    folder.mkdir(parents=True)
    header = b"{}"
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    for name in ("adapter_config.json", "trainer_state.json", "optimizer.pt"):
        (folder / name).write_text("{}")
    return folder


QUERY = "model.language_model.layers.0.self_attn.q_proj"
ADAPTER = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "modules_to_save": None}


def write_weights(path, names, *, dtype="F32", fill=0):
    """A safetensors file whose header names tensors of one element, all bytes of which are `fill`."""
    size = {"F32": 4, "BF16": 2, "I8": 1}[dtype]
    header = {
        name: {"dtype": dtype, "shape": [1], "data_offsets": [size * at, size * at + size]}
        for at, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes([fill]) * size * len(names))


def write_adapter(folder, base, *, adapted=(QUERY,), saved=(), **config):
    """An adapter's config, and a file whose header names its tensors; their bytes are zeros."""
    names = [f"base_model.model.{name}.lora_{part}.weight" for name in adapted for part in "AB"]
    names += [f"base_model.model.{module}.{part}.weight" for module in saved for part in ("norm", "linear_fc1")]
    folder.mkdir(parents=True)
    write_weights(folder / "adapter_model.safetensors", names)
    document = ADAPTER | {"base_model_name_or_path": str(base), "modules_to_save": list(saved) or None} | config
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


class House:
    """A folder with `base`, `train.jsonl` and `val.jsonl`; makes plans of recipes on them."""

    def __init__(self, folder):
        self.folder = folder.resolve()
        self.base = write_config(folder / "base")
        self.train = folder / "train.jsonl"
        self.val = folder / "val.jsonl"
        for path in (self.train, self.val):
            path.write_text("{}\n")
        self.env = {"VLTOOL_MODEL": str(self.base), "VLTOOL_TRAIN_JSONL": str(self.train)}

    def write(self, extends="base", name="mine", **sections):
        """A recipe file; JSON is YAML."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({"extends": extends, **sections}))
        return path

    def recipe(self, source="base", *, env=(), **sections):
        """A shipped recipe by its name, with `sections` over it."""
        source = str(self.write(source, **sections)) if sections or not isinstance(source, str) else source
        return load_recipe(source, env=self.env | dict(env), cwd=self.folder)

    def plan(self, source="base", *, env=(), shell=(), now=NOW, **sections):
        """env: variables that the recipe reads; shell: those that the plan looks at."""
        return self.plan_of(self.recipe(source, env=env, **sections), shell=shell, now=now)

    def plan_of(self, recipe, *, shell=(), now=NOW):
        """The plan of a recipe that was read."""
        return make_plan(recipe, cwd=self.folder, env=dict(shell), now=now)

    def refused(self, *args, **kwargs):
        """The problems for which there is no plan."""
        with pytest.raises(InvalidInput) as caught:
            self.plan(*args, **kwargs)
        return caught.value.problems
