"""What the audits cost: `python benchmarks/audit.py [--rounds N]`.

inspect-ckpt: a sharded checkpoint of the 8B's shapes, in sparse files, against an empty Typer app; each round runs
both, in turn, and the difference is taken within the round. --values: bytes a second of processor time of one core,
on files in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vltool.checkpoint.inspection import inspect
from vltool.checkpoint.values import survey

EMPTY = """
import typer

app = typer.Typer(add_completion=False)


@app.command()
def main() -> None:
    pass


app()
"""
SHARDS = 4
MOST_S, MOST_MB, LEAST_GB_S = 0.5, 60, 0.7
"""Budgets (design, section 12)."""


def shapes_8b() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of Qwen3-VL-8B: 36 layers of 4096, 27 vision blocks of 1152."""
    text, wide, kv, vocab = 4096, 12288, 1024, 151936
    yield "lm_head.weight", (vocab, text)
    yield "model.language_model.embed_tokens.weight", (vocab, text)
    yield "model.language_model.norm.weight", (text,)
    for layer in range(36):
        at = f"model.language_model.layers.{layer}"
        for name, shape in (
            ("input_layernorm", (text,)), ("post_attention_layernorm", (text,)), ("self_attn.q_norm", (128,)),
            ("self_attn.k_norm", (128,)), ("self_attn.q_proj", (text, text)), ("self_attn.k_proj", (kv, text)),
            ("self_attn.v_proj", (kv, text)), ("self_attn.o_proj", (text, text)), ("mlp.gate_proj", (wide, text)),
            ("mlp.up_proj", (wide, text)), ("mlp.down_proj", (text, wide)),
        ):  # fmt: skip
            yield f"{at}.{name}.weight", shape
    vision, inner, merged = 1152, 4304, 4608
    yield "model.visual.pos_embed.weight", (2304, vision)
    yield "model.visual.patch_embed.proj.weight", (vision, 3, 2, 16, 16)
    for block in range(27):
        at = f"model.visual.blocks.{block}"
        for name, shape in (
            ("norm1", (vision,)), ("norm2", (vision,)), ("attn.qkv", (3 * vision, vision)),
            ("attn.proj", (vision, vision)), ("mlp.linear_fc1", (inner, vision)), ("mlp.linear_fc2", (vision, inner)),
        ):  # fmt: skip
            yield f"{at}.{name}.weight", shape
            yield f"{at}.{name}.bias", shape[:1]
    for at in ("merger", *(f"deepstack_merger_list.{index}" for index in range(3))):
        yield f"model.visual.{at}.linear_fc1.weight", (merged, merged)
        yield f"model.visual.{at}.linear_fc2.weight", (text, merged)


def write_sharded(folder: Path) -> int:
    """A checkpoint of those shapes whose tensors are holes in its files; returns its size in bytes."""
    tensors = list(shapes_8b())
    each = -(-len(tensors) // SHARDS)
    places = {}
    total = 0
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        header, end = {}, 0
        for tensor, shape in tensors[shard * each : (shard + 1) * each]:
            size = 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            places[tensor] = name
            end += size
        raw = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            file.truncate(8 + len(raw) + end)
        total += end
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", "tie_word_embeddings": False}))
    return total


def run(arguments: list[str]) -> tuple[float, float]:
    """Seconds of one run in a process of its own, and the most memory that was resident in it, in MB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def write_values(path: Path, dtype: str, bits: np.ndarray) -> None:
    """One tensor of these bits in a file."""
    header = {"w": {"dtype": dtype, "shape": bits.shape, "data_offsets": [0, bits.nbytes]}}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bits.tobytes())


def values_table(size: int) -> None:
    """Print bytes a second of every type of element."""
    floats = np.random.default_rng(0).standard_normal(size // 4).astype(np.float32) * 0.02
    halves = {
        "F32": floats,
        "BF16": (floats.view(np.uint32) >> 16).astype(np.uint16),
        "F16": floats.astype(np.float16),
        "F8_E4M3": (floats.view(np.uint32) >> 20).astype(np.uint8) & np.uint8(0xF7),
    }
    for dtype, bits in halves.items():
        with tempfile.TemporaryDirectory() as folder:
            write_values(Path(folder, "model.safetensors"), dtype, bits)
            tensors = inspect(Path(folder)).tensors
            survey(tensors)
            rates = []
            for _ in range(5):
                started = time.process_time()
                survey(tensors)
                rates.append(bits.nbytes / (time.process_time() - started) / 1e9)
            rate = statistics.median(rates)
            print(f"--values {dtype:8} {rate:5.2f} GB/s a core  {_verdict(rate >= LEAST_GB_S, LEAST_GB_S)}")


def _verdict(kept: bool, budget: float) -> str:
    return f"budget {budget}: {'kept' if kept else 'MISSED'}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--values-mb", type=int, default=512)
    arguments = parser.parse_args()
    # One core is what the budget speaks of.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        size = write_sharded(Path(folder))
        empty = Path(folder, "empty.py")
        empty.write_text(EMPTY)
        over, peaks = [], []
        for _ in range(arguments.rounds + 1):
            floor, _ = run([str(empty)])
            taken, peak = run(["-m", "vltool", "inspect-ckpt", folder])
            over.append(taken - floor)
            peaks.append(peak)
        middle, peak = statistics.median(over[1:]), max(peaks)
        low, _, high = statistics.quantiles(over[1:], n=4)
        print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs; {size / 1e9:.1f} GB in {SHARDS} sparse shards")
        print(f"inspect-ckpt over an empty Typer app: {middle:.3f} s ({low:.3f}-{high:.3f})  "
              f"{_verdict(middle <= MOST_S, MOST_S)}")  # fmt: skip
        print(f"its peak memory: {peak:.1f} MB  {_verdict(peak <= MOST_MB, MOST_MB)}")
    values_table(arguments.values_mb << 20)


if __name__ == "__main__":
    main()
