"""What the audits cost: `python benchmarks/audit.py [--rounds N] [--only inspect|values|headers]`.

inspect-ckpt: a sharded checkpoint of the 8B's shapes, in sparse files, against an empty Typer app; each round runs
both, in turn, and the difference is taken within the round. --values: bytes a second of processor time of one core,
on files in the page cache. Headers: of JPEGs that are cut from the demo's photographs, some turned by EXIF, on two
cores; first without a cache of headers, once from the disk as far as the kernel lets go of the files and then from its
page cache, then with one; and records a second of the whole scan that `check` makes of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
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
from vltool.data.conversation import Prompts
from vltool.data.header_reader import HeaderReader
from vltool.data.scan import READ_AT_ONCE, scan

EMPTY = """
import typer

app = typer.Typer(add_completion=False)


@app.command()
def main() -> None:
    pass


app()
"""
SHARDS = 4
MOST_S, MOST_MB, LEAST_GB_S, LEAST_HEADERS_S = 0.5, 60, 0.7, 5000
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
    """One tensor of these bits in a file, aligned as the safetensors library aligns it."""
    header = {"w": {"dtype": dtype, "shape": bits.shape, "data_offsets": [0, bits.nbytes]}}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
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


def write_photographs(folder: Path, count: int) -> Path:
    """A JSONL of so many JPEGs, each another part of a demo photograph in another size."""
    from PIL import Image

    import vltool.data

    draw = random.Random(0)
    demo = Path(vltool.data.__file__).parent / "demo" / "images"
    sources = [Image.open(path).convert("RGB") for path in sorted(demo.glob("*.jpg"))]
    (folder / "images").mkdir()
    lines = []
    for number in range(count):
        source = sources[number % len(sources)]
        left, top = (draw.randrange(side // 2) for side in source.size)
        part = source.crop((left, top, *source.size))
        exif = Image.Exif()
        exif[0x010F] = "a camera"
        turned = number % 4 == 3
        exif[0x0112] = 6 if turned else 1
        options = {"exif": exif} if number % 2 else {}
        part.save(folder / "images" / f"{number}.jpg", quality=draw.randint(60, 95), **options)
        width, height = part.size[::-1] if turned else part.size
        record = {"images": [f"images/{number}.jpg"], "width": width, "height": height}
        lines.append(json.dumps(record | {"objects": [{"desc": "it", "bbox_2d": [0, 0, width, height]}]}))
    path = folder / "photographs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def headers_table(count: int, rounds: int) -> None:
    """Print headers a second, and records a second of a scan that reads them."""
    if len(os.sched_getaffinity(0)) > 2:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with tempfile.TemporaryDirectory() as folder:
        jsonl = write_photographs(Path(folder), count)
        cache = jsonl.with_name(f".{jsonl.name}.vlheaders")
        refs = [f"images/{number}.jpg" for number in range(count)]

        def seconds(*, warm: bool, dropped: bool = False) -> float:
            if not warm:
                cache.unlink(missing_ok=True)
            if dropped:
                drop([jsonl.parent / ref for ref in refs])
            started = time.perf_counter()
            reader = HeaderReader(jsonl, root=None)
            found = sum(len(reader.read(refs[at : at + READ_AT_ONCE])) for at in range(0, count, READ_AT_ONCE))
            reader.save()
            assert found == count
            return time.perf_counter() - started

        def scanned() -> float:
            started = time.perf_counter()
            how = {"prompts": Prompts("?"), "emit_norm": "norm1000", "use_summary": False, "max_pixels": None}
            assert scan(jsonl, **how, counter=None, max_length=0, check_images=True).bad == ()
            return time.perf_counter() - started

        for name, one in {
            "no cache, from the disk": lambda: seconds(warm=False, dropped=True),
            "no cache, from the page cache": lambda: seconds(warm=False),
            "cached": lambda: seconds(warm=True),
            "records, headers cached": scanned,
        }.items():
            rates = sorted(count / one() for _ in range(rounds))
            rate = statistics.median(rates)
            print(f"headers, {name:30} {rate:9,.0f}/s ({rates[0]:,.0f}-{rates[-1]:,.0f})  "
                  f"{_verdict(rate >= LEAST_HEADERS_S, LEAST_HEADERS_S)}")  # fmt: skip


def drop(paths: list[Path]) -> None:
    """Ask the kernel to let go of files' contents."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _verdict(kept: bool, budget: float) -> str:
    return f"budget {budget}: {'kept' if kept else 'MISSED'}"


def inspect_table(rounds: int) -> None:
    """Print what inspect-ckpt takes over an empty command."""
    with tempfile.TemporaryDirectory() as folder:
        size = write_sharded(Path(folder))
        empty = Path(folder, "empty.py")
        empty.write_text(EMPTY)
        over, peaks = [], []
        for _ in range(rounds + 1):
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--values-mb", type=int, default=512)
    parser.add_argument("--headers", type=int, default=8000)
    parser.add_argument("--only", choices=("inspect", "values", "headers"))
    arguments = parser.parse_args()
    # One core is what the budget speaks of.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if arguments.only in (None, "inspect"):
        inspect_table(arguments.rounds)
    if arguments.only in (None, "values"):
        values_table(arguments.values_mb << 20)
    if arguments.only in (None, "headers"):
        headers_table(arguments.headers, arguments.rounds)


if __name__ == "__main__":
    main()
