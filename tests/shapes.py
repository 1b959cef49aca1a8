"""Checkpoint folders of real shapes: a config.json, and safetensors headers over files that are all holes."""

from __future__ import annotations

import json
import math

TEXT_4B = {
    "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 9728, "vocab_size": 151936,
}  # fmt: skip
VISION_4B = {
    "depth": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096, "patch_size": 16,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17],
    "num_position_embeddings": 2304,
}  # fmt: skip
BITS = {"BF16": 16, "F32": 32}


def tensors_of(text, vision):
    """Names and shapes of a dense Qwen3-VL's tensors, the head tied to the embedding."""
    wide, inner, hidden = text["hidden_size"], text["intermediate_size"], vision["hidden_size"]
    heads, keys = (text[name] * text["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    top, seen = "model.language_model.", "model.visual."
    found = {f"{top}embed_tokens.weight": (text["vocab_size"], wide), f"{top}norm.weight": (wide,)}
    layer = {
        "self_attn.q_proj": (heads, wide), "self_attn.k_proj": (keys, wide), "self_attn.v_proj": (keys, wide),
        "self_attn.o_proj": (wide, heads), "mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide),
        "mlp.down_proj": (wide, inner), "input_layernorm": (wide,), "post_attention_layernorm": (wide,),
        "self_attn.q_norm": (text["head_dim"],), "self_attn.k_norm": (text["head_dim"],),
    }  # fmt: skip
    for number in range(text["num_hidden_layers"]):
        found |= {f"{top}layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    side, time = vision["patch_size"], vision["temporal_patch_size"]
    found[f"{seen}patch_embed.proj.weight"] = (hidden, 3, time, side, side)
    found[f"{seen}patch_embed.proj.bias"] = (hidden,)
    found[f"{seen}pos_embed.weight"] = (vision["num_position_embeddings"], hidden)

    def both(name, shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    for number in range(vision["depth"]):
        block = f"{seen}blocks.{number}."
        for norm in ("norm1", "norm2"):
            found |= both(block + norm, (hidden,))
        found |= both(f"{block}attn.qkv", (3 * hidden, hidden)) | both(f"{block}attn.proj", (hidden, hidden))
        found |= both(f"{block}mlp.linear_fc1", (vision["intermediate_size"], hidden))
        found |= both(f"{block}mlp.linear_fc2", (hidden, vision["intermediate_size"]))
    merged = hidden * vision["spatial_merge_size"] ** 2
    mergers = {"merger": hidden} | {
        f"deepstack_merger_list.{at}": merged for at in range(len(vision["deepstack_visual_indexes"]))
    }
    for name, normed in mergers.items():
        found |= both(f"{seen}{name}.norm", (normed,)) | both(f"{seen}{name}.linear_fc1", (merged, merged))
        found |= both(f"{seen}{name}.linear_fc2", (vision["out_hidden_size"], merged))
    return found


def write_shapes(folder, text=TEXT_4B, vision=VISION_4B, *, dtype="BF16"):
    """A checkpoint folder of this shape, which takes no room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    end, header = 0, {}
    for name, shape in tensors_of(text, vision).items():
        size = math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return folder
