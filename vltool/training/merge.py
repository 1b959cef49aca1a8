"""Merges an earlier stage's adapter into its base: a checkpoint of its own, complete and as the base is stored.

Run as `python -m vltool.training.merge PLAN.json`, in a process of its own: it gives all memory back.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from vltool.checkpoint.census import TRAINER_STATE, Census, take_census
from vltool.errors import RunFailed
from vltool.run.evidence import to_json
from vltool.run.merge import FILE_NAME, MergePlan, is_merged
from vltool.run.plan import RunPlan

MAX_SHARD_SIZE = "5GB"

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json", ".h5", ".msgpack", ".onnx", ".gguf")
"""How files of weights and of a trainer's state end; all others belong to a checkpoint."""


def merge(plan: MergePlan) -> None:
    """Write the merged base into the plan's folder: beside it, then renamed. Does nothing where it is already.

    Raises RunFailed for a result that does not hold the base's tensors.
    """
    if is_merged(plan):
        return
    folder = Path(plan.folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    beside.mkdir()
    try:
        census = take_census(Path(plan.base))
        merged = _merged(plan, census)
        merged.save_pretrained(beside, max_shard_size=MAX_SHARD_SIZE)
        # After the weights: the configs are the base's own, whatever transformers makes of them.
        _copy_rest(Path(plan.base), beside)
        _same_tensors(census, take_census(beside))
        (beside / FILE_NAME).write_bytes(to_json(plan))
        for path in beside.rglob("*"):
            _flush(path)
        try:
            beside.rename(folder)
        except OSError as error:
            # Another run may have merged the same meanwhile.
            if not is_merged(plan):
                raise RunFailed(f"{folder} cannot be written: {error.strerror}") from error
        _flush(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _merged(plan: MergePlan, census: Census) -> Any:
    """The base with the adapter merged, every tensor as the base stores it, rounded once."""
    stored = Counter(info.dtype for info in census.tensors.values())
    widest = next(dtype for name, dtype in _DTYPES.items() if name in stored)
    base = AutoModelForImageTextToText.from_pretrained(plan.base, dtype=widest)
    model = PeftModel.from_pretrained(base, plan.checkpoint, torch_device="cpu").eval()
    for module in list(model.modules()):
        if isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer()
            assert isinstance(layer, torch.nn.Module)
            dtype = next(layer.parameters()).dtype
            layer.float()
            module.merge()
            layer.to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        merged = model.merge_and_unload()
    for name, parameter in merged.named_parameters():
        info = census.tensors.get(name)
        parameter.data = parameter.data.to(widest if info is None else _DTYPES[info.dtype])
    return merged


def _copy_rest(base: Path, folder: Path) -> None:
    """Copy all that is not weights, nor the state of a trainer whose checkpoint the base may be."""
    for path in base.rglob("*"):
        relative = path.relative_to(base)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and not path.name.endswith(_WEIGHTS) and path.name != TRAINER_STATE:
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)


def _same_tensors(base: Census, merged: Census) -> None:
    wrong = sorted(
        name
        for name in base.tensors.keys() | merged.tensors.keys()
        if base.tensors.get(name) != merged.tensors.get(name)
    )
    if wrong:
        name = wrong[0]
        raise RunFailed(
            f"{len(wrong)} tensors of the merged base are not as the base has them, the first: {name}, "
            f"{merged.tensors.get(name)} in place of {base.tensors.get(name)}"
        )


def _flush(path: Path) -> None:
    """Have a file, or a folder's list of names, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    # A scheduler's SIGTERM must not leave half a checkpoint beside.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.disable_progress_bar()
    wanted = RunPlan.from_json(Path(sys.argv[1]).read_bytes()).merge
    if wanted is not None:
        merge(wanted)
