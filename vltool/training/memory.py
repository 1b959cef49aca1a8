"""An error of torch's for want of GPU memory -> one that the operator reads, with what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vltool.errors import OutOfMemory

GIB = 2**30
_SAYS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA driver error: out of memory")
"""What CUDA's own libraries say, whose errors have no class."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU's memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS)


@contextmanager
def watching_memory(during: Callable[[], str]) -> Iterator[None]:
    """Inside, an error for want of GPU memory becomes OutOfMemory. during: what was being done, such as `in step 3`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        peak = gpu = None
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
            gpu = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        measured = "" if not peak or gpu is None else f" (tensors held {peak / GIB:.1f} of {gpu / GIB:.1f} GiB at most)"
        raise OutOfMemory(
            f"out of memory {during()}{measured}: {str(error).splitlines()[0]}",
            "lower training.per_device_train_batch_size, template.max_pixels or global_max_length, "
            "or turn training.gradient_checkpointing on",
            peak_bytes=peak,
            gpu_bytes=gpu,
        ) from error
