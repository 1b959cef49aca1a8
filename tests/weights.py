"""Checkpoints for tests: files of weights, an adapter over a small base, both as their tools write them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

ATTENTION = "model.language_model.layers.0.self_attn.q_proj"
MERGER = "model.visual.merger.linear_fc1"
BASE: dict[str, tuple[int, ...]] = {
    "model.language_model.embed_tokens.weight": (16, 8),
    f"{ATTENTION}.weight": (12, 8),
    "model.language_model.layers.1.self_attn.q_proj.weight": (12, 8),
    "model.language_model.norm.weight": (8,),
    f"{MERGER}.weight": (6, 6),
    f"{MERGER}.bias": (6,),
    "model.visual.blocks.0.attn.qkv.weight": (18, 6),
    "model.visual.deepstack_merger_list.1.linear_fc1.weight": (6, 6),
}
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "peft_version": "0.20.0", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
    "modules_to_save": ["merger"], "bias": "none",
}  # fmt: skip
DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "uint16": "BF16", "uint8": "F8_E4M3", "int64": "I64"}


def write_weights(path: Path, tensors: dict[str, Any], *, dtype: str | None = None) -> None:
    """A .safetensors file of arrays, or of ones where only a shape is given."""
    header, data = {}, b""
    for name, value in tensors.items():
        array = value if isinstance(value, np.ndarray) else np.ones(value, np.float32)
        raw = array.tobytes()
        header[name] = {
            "dtype": dtype or DTYPES[array.dtype.name], "shape": array.shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def write_base(folder: Path, *, tied: bool = True, tensors: dict[str, Any] | None = None) -> Path:
    """A whole model in one file."""
    write_weights(folder / "model.safetensors", BASE if tensors is None else tensors)
    write_json(folder / "config.json", {"model_type": "qwen3_vl", "tie_word_embeddings": tied})
    return folder


def write_sharded(folder: Path) -> list[Path]:
    """The same in two shards and an index."""
    write_base(folder)
    (folder / "model.safetensors").unlink()
    names = list(BASE)
    shards = {f"model-0000{at}-of-00002.safetensors": names[at - 1 :: 2] for at in (1, 2)}
    for shard, held in shards.items():
        write_weights(folder / shard, {name: BASE[name] for name in held})
    places = {name: shard for shard, held in shards.items() for name in held}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return [folder / shard for shard in shards]


def adapter_tensors(rank: int = 2) -> dict[str, Any]:
    """A LoRA on both q_proj, and the merger in full."""
    found: dict[str, Any] = {}
    for layer in (0, 1):
        at = f"base_model.model.model.language_model.layers.{layer}.self_attn.q_proj"
        found |= {f"{at}.lora_A.weight": (rank, 8), f"{at}.lora_B.weight": (12, rank)}
    return found | {f"base_model.model.{MERGER}.weight": (6, 6), f"base_model.model.{MERGER}.bias": (6,)}


def write_adapter(
    folder: Path, *, base: Path | str | None, tensors: dict[str, Any] | None = None, **config: Any
) -> Path:
    """An adapter, its configuration and the state of its run at step 7."""
    write_weights(folder / "adapter_model.safetensors", adapter_tensors() if tensors is None else tensors)
    write_json(folder / "adapter_config.json", CONFIG | {"base_model_name_or_path": base and str(base)} | config)
    state = {"global_step": 7, "epoch": 1.5, "best_metric": 0.25, "best_model_checkpoint": "/run/checkpoint-7"}
    write_json(folder / "trainer_state.json", state)
    (folder / "optimizer.pt").write_bytes(b"PK\3\4")
    return folder
