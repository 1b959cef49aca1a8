"""What the distillation benchmark trains: a checkpoint of random weights, images and records, and a recipe of them."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

BATCH = 4
"""Rows of a step: one batch a device, no accumulation."""
IMAGE_TOKEN_PX = 32
"""Side of what one image token sees."""
WORDS = (
    "red car", "grey van", "tree", "street lamp", "person with a bag", "bicycle", "window", "door", "left lane marking",
    "traffic sign", "dog", "bench",
)  # fmt: skip
FILLER = "~"
"""One token each, whatever stands beside it: the tokenizer is trained on texts without it."""
AROUND_ANSWER = ("<|im_end|>", "\n")
AROUND_PROMPT = (
    "<|im_start|>", "user", "\n", "<|vision_start|>", "<|vision_end|>", "<|im_end|>", "\n", "<|im_start|>",
    "assistant", "\n",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """One row of a batch."""

    tokens: int
    labels: int
    """Tokens of the answer, its end included, which the loss sees."""
    side_px: int
    """Of the square image."""

    @property
    def image_tokens(self) -> int:
        """Positions that the image takes."""
        return (self.side_px // IMAGE_TOKEN_PX) ** 2


@dataclass(frozen=True, slots=True)
class Size:
    """How much the benchmark does."""

    shapes: dict[str, Shape]
    dtype: str
    workers: int
    warmup: int
    """Steps that are not counted: compilation, the allocator's growth, the audit of the first step."""
    steps: int
    loss: tuple[int, int, int]
    """Label positions, vocabulary and hidden size of the loss alone."""
    gemm: int
    """Side of the square matrices whose product gives the GEMM rate."""

    @property
    def rows(self) -> int:
        """Records of each shape: no step sees one twice."""
        return BATCH * (self.warmup + self.steps)


_REAL = Size(
    shapes={"image": Shape(2048, 400, 1024), "text": Shape(2048, 1600, 512)},
    dtype="bfloat16",
    workers=4,
    warmup=2,
    steps=5,
    loss=(8192, 151936, 2560),
    gemm=8192,
)
SIZES = {
    "4b": _REAL,
    # For its memory: what does not fit is left out by name.
    "8b": replace(_REAL, loss=(8192, 151936, 4096)),
    # The same way, to see that nothing breaks; its times say nothing.
    "tiny": Size(
        shapes={"image": Shape(256, 48, 320), "text": Shape(256, 96, 256)},
        dtype="float32",
        workers=1,
        warmup=1,
        steps=2,
        loss=(128, 4096, 64),
        gemm=256,
    ),
}

TEXT_4B = {
    "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 9728, "vocab_size": 151936, "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5_000_000.0, "mrope_interleaved": True, "mrope_section": [24, 20, 20],
    },
}  # fmt: skip
VISION_4B = {
    "depth": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096, "patch_size": 16,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17],
    "num_position_embeddings": 2304,
}  # fmt: skip
"""Qwen3-VL-4B-Instruct's config.json, where it differs from transformers' defaults or has to be right."""
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "4b": (TEXT_4B, VISION_4B, {}),
    "8b": (
        TEXT_4B | {"hidden_size": 4096, "intermediate_size": 12288},
        VISION_4B
        | {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        {"tie_word_embeddings": False},
    ),
}  # fmt: skip
"""Text, vision and whole of config.json; that of 8b is Qwen3-VL-8B-Instruct's."""


def prepare(folder: Path, size_name: str, checkpoints: Path) -> dict[str, Any]:
    """Write the checkpoint under `checkpoints` and the data of every shape into `folder`; what was written."""
    size = SIZES[size_name]
    checkpoint = _checkpoint(checkpoints / f"qwen3-vl-{size_name}", size_name)
    shapes = {name: _data(folder / name, shape, size.rows, checkpoint) for name, shape in size.shapes.items()}
    return {"checkpoint": str(checkpoint), "shapes": shapes}


# --- checkpoint -------------------------------------------------------------------------------------------


def _checkpoint(folder: Path, size_name: str) -> Path:
    from vltool.training.tiny import make_tiny

    rng = random.Random(0)
    texts = (*(json.dumps(_as_answer([_object(rng, 1024) for _ in range(12)])) for _ in range(64)), _PROMPT * 2)
    # Its tokenizer and processor have the released models' token ids, which ms-swift writes into its templates.
    make_tiny(folder, texts=texts, real_ids=True)
    if size_name in MODELS:
        _random_weights(folder, size_name)
    return folder


def _random_weights(folder: Path, size_name: str) -> None:
    """Put a model of a real size in the place of the tiny one, made where it is fastest."""
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text, vision, whole = MODELS[size_name]
    document["text_config"] |= text
    document["vision_config"] |= vision
    document |= whole | {"dtype": "bfloat16"}
    for part in (document, document["text_config"], document["vision_config"]):
        part.pop("torch_dtype", None)
        part["dtype"] = "bfloat16"
    config = Qwen3VLConfig.from_dict(document)
    torch.manual_seed(0)
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = Qwen3VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(former)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    # Beside shards of the new one, the tiny model's file would be the one that is read.
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)


# --- records ----------------------------------------------------------------------------------------------

_PROMPT = (
    "Find every object in the image and answer with one JSON object. Each entry has a short description of the "
    "object and a box as four whole numbers on a grid from 0 to 1000. Write the JSON and nothing else. "
)


def _object(rng: random.Random, side_px: int) -> dict[str, Any]:
    x, y = rng.randrange(side_px - 64), rng.randrange(side_px - 64)
    box = [x, y, x + rng.randrange(8, 64), y + rng.randrange(8, 64)]
    return {"desc": rng.choice(WORDS), "bbox_2d": box}


def _as_answer(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return {f"object_{number}": one for number, one in enumerate(objects, 1)}


def _data(folder: Path, shape: Shape, rows: int, checkpoint: Path) -> dict[str, Any]:
    """Images, and the same records in vltool's form and in ms-swift's.

    Every row has exactly the shape's tokens: with one length in a batch neither side pads, so that both do the
    work that is counted.
    """
    from tokenizers import Tokenizer

    from vltool.data.conversation import assistant_text
    from vltool.data.record import parse_record
    from vltool.errors import Where

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    def answer(record: dict[str, Any]) -> str:
        parsed = parse_record(json.dumps(record).encode(), Where("benchmark"))
        return assistant_text(parsed, emit_norm="norm1000", use_summary=False, seen_size=None)

    (folder / "images").mkdir(parents=True)
    wanted = shape.tokens - shape.image_tokens - shape.labels - count("".join(AROUND_PROMPT))
    prompt = _PROMPT
    while count(prompt + _PROMPT) <= wanted:
        prompt += _PROMPT
    while count(prompt) > wanted:
        prompt = prompt[: prompt.rindex(" ")]
    prompt += FILLER * (wanted - count(prompt))
    ours, theirs = [], []
    for row in range(rows):
        rng = random.Random(f"{shape} {row}")
        image = _image(folder / "images" / f"{row}.jpg", shape.side_px, seed=row)
        record = {"images": [f"images/{image.name}"], "width": shape.side_px, "height": shape.side_px, "objects": []}
        room = shape.labels - count("".join(AROUND_ANSWER))
        while True:
            longer = record | {"objects": [*record["objects"], _object(rng, shape.side_px)]}
            if count(answer(longer)) > room:
                break
            record = longer
        record["objects"][-1]["desc"] += FILLER * (room - count(answer(record)))
        ours.append(record)
        turns = [
            {"role": "user", "content": f"<image>{prompt}"},
            {"role": "assistant", "content": answer(record)},
        ]
        theirs.append({"messages": turns, "images": [str(image.resolve())]})
    files = {"vltool": folder / "records.jsonl", "swift": folder / "messages.jsonl"}
    for path, lines in zip(files.values(), (ours, theirs), strict=True):
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return {"prompt": prompt, "files": {name: str(path) for name, path in files.items()}} | asdict(shape)


def _image(path: Path, side_px: int, *, seed: int) -> Path:
    """Blotches under a little noise: a JPEG that is neither as large as pure noise nor as small as a plain colour."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    blotches = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    pixels = np.asarray(blotches.resize((side_px, side_px), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=90)
    return path


# --- recipe -----------------------------------------------------------------------------------------------

GKD = {"rlhf_type": "gkd", "beta": 0.5, "sft_alpha": 0.3, "lmbda": 0.0, "seq_kd": False, "temperature": 1.0}
"""Without sampling: the step that is compared trains on the dataset's captions."""


def recipe(
    made: dict[str, Any], size: Size, shape: str, run_dir: Path, *, gkd: bool, checkpointing: bool
) -> dict[str, Any]:
    """A recipe over the shipped `base`: the language model by LoRA of rank 32, on one shape."""
    data = made["shapes"][shape]
    bf16 = size.dtype == "bfloat16"
    document: dict[str, Any] = {
        "extends": "base",
        "global_max_length": data["tokens"],
        "model": {"model": made["checkpoint"], "torch_dtype": size.dtype},
        "data": {"dataloader_num_workers": size.workers},
        "training": {
            "output_dir": str(run_dir),
            "max_steps": size.warmup + size.steps,
            "num_train_epochs": 1,
            "per_device_train_batch_size": BATCH,
            "effective_batch_size": None,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": checkpointing,
            "bf16": bf16,
            "learning_rate": 1e-6,
            "lr_scheduler_type": "constant",
            "lr_scheduler_kwargs": None,
            "warmup_ratio": 0.0,
            "logging_steps": 10,
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 1_000_000,
            "save_last_epoch": False,
        },
        "custom": {"train_jsonl": data["files"]["vltool"], "val_jsonl": None, "user_prompt": data["prompt"]},
    }
    if gkd:
        document["rlhf"] = dict(GKD)
    return document
