"""Names of weights and modules -> the part of Qwen3-VL they belong to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from vltool.errors import InvalidInput

Tower = Literal["vision", "aligner", "deepstack", "language", "head"]
TOWERS: tuple[Tower, ...] = ("vision", "aligner", "deepstack", "language", "head")

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
"""`model_type` of a config.json that vltool trains; ms-swift calls them the same."""

_DEEPSTACK = re.compile(r"visual\.deepstack_merger_list\.(\d+)\b")
_WRAPPERS = re.compile(r"^(?:base_model\.model\.)|(?<=\.)(?:modules_to_save\.[^.]+|original_module|base_layer)\.")


def plain_name(name: str) -> str:
    """The name in the base checkpoint's terms: without peft's `base_model.model.` and wrapper parts."""
    return _WRAPPERS.sub("", name)


def tower_of(name: str) -> Tower:
    """The tower that a parameter or module of any of its spellings (base, peft) belongs to."""
    name = plain_name(name)
    if "visual.deepstack_merger_list" in name:
        return "deepstack"
    if "visual.merger" in name:
        return "aligner"
    if "visual" in name.split("."):
        return "vision"
    return "head" if name.startswith("lm_head") else "language"


def deepstack_index(name: str) -> int | None:
    """Which of the deepstack mergers a name belongs to; None outside them."""
    found = _DEEPSTACK.search(name)
    return int(found.group(1)) if found else None


_ADAPTER_PARTS = ("lora_", "boft_", "fourierft_")
"""How peft's names of an adapter's own parameters begin."""


def in_adapter(name: str) -> bool:
    """Whether a parameter's name is one that an adapter's checkpoint holds: its own, or in a saved module."""
    return ".modules_to_save." in name or any(part.startswith(_ADAPTER_PARTS) for part in name.split("."))


def tensor_kind(name: str) -> str:
    """What a trainable tensor is: `lora_A`, `lora_B`, `boft_R`, `weight`, `bias`, …"""
    parts = [part for part in name.split(".") if part not in ("default", "weight")]
    return parts[-1] if parts and parts[-1].startswith((*_ADAPTER_PARTS, "bias")) else "weight"


Size = Annotated[int, Meta(ge=1, le=1 << 30)]
Depth = Annotated[int, Meta(ge=0, le=4096)]
"""Layers: more than any model has are a mistake, which would be counted one by one."""


class Architecture(Struct, frozen=True, kw_only=True):
    """What a checkpoint's config.json says of its shape."""

    model_type: str
    vision_depth: Depth
    deepstack_mergers: int
    text_layers: Depth
    hidden_size: Size
    vocab_size: Size
    tied_head: bool
    patch_size: Size
    merge_size: Size


def read_architecture(folder: Path) -> Architecture:
    """Read `folder`/config.json.

    Raises InvalidInput when the folder or the file is absent, is no JSON, or is no Qwen3-VL with whole weights.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise InvalidInput(f"no such checkpoint folder: {folder}", "download the checkpoint first, or mend the path")
    if not path.is_file():
        raise InvalidInput(f"{folder} holds no config.json", "name the folder of a whole Hugging Face checkpoint")
    try:
        config = json.loads(path.read_bytes())
        model_type = config["model_type"]
        if model_type not in MODEL_TYPES:
            raise InvalidInput(f"{path}: model_type is {model_type!r}", f"vltool trains {' and '.join(MODEL_TYPES)}")
        if "auto_map" in config:
            # ms-swift loads with trust_remote_code=True, always.
            raise InvalidInput(
                f"{path}: names Python code of its own (auto_map), which loading would run",
                "use a plain Qwen3-VL checkpoint: transformers holds its code",
            )
        if "quantization_config" in config:
            raise InvalidInput(
                f"{path}: the weights are stored quantized (quantization_config)",
                "name the checkpoint in bfloat16; the recipe's section quantization loads that in 4 bits",
            )
        vision, text = config["vision_config"], config["text_config"]
        shape = {
            "model_type": model_type,
            "vision_depth": vision["depth"],
            "deepstack_mergers": len(vision["deepstack_visual_indexes"]),
            "text_layers": text["num_hidden_layers"],
            "hidden_size": text["hidden_size"],
            "vocab_size": text["vocab_size"],
            "tied_head": bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            "patch_size": vision["patch_size"],
            "merge_size": vision["spatial_merge_size"],
        }
        return msgspec.convert(shape, Architecture)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{path}:{error.lineno}:{error.colno}: no JSON: {error.msg}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{path}: no JSON: {error}", "copy the file again") from error
    except KeyError as error:
        what = f"{path}: is no Qwen3-VL config: {error} is missing or of the wrong type"
        raise InvalidInput(what, "copy config.json from the checkpoint again") from error
    except msgspec.ValidationError as error:
        what = f"{path}: is no Qwen3-VL config: {error}"
        raise InvalidInput(what, "copy config.json from the checkpoint again") from error
    except (TypeError, AttributeError) as error:
        what = f"{path}: is no Qwen3-VL config: a section of it is missing or of the wrong type"
        raise InvalidInput(what, "copy config.json from the checkpoint again") from error
