"""A run that dies for want of GPU memory: how it is told from other errors, and what its operator reads."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from vltool.errors import OutOfMemory, RunFailed
from vltool.run.evidence import Evidence
from vltool.training import trainer
from vltool.training.memory import is_out_of_memory, watching_memory

CUDA_SAYS = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (torch.OutOfMemoryError(CUDA_SAYS), True),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("expected scalar type Float but found BFloat16"), False),
        (MemoryError("out of memory"), False),
    ],
)
def test_errors_for_want_of_gpu_memory_are_told_from_others(error, verdict):
    assert is_out_of_memory(error) is verdict


def test_the_error_says_when_it_happened_and_what_cuda_said():
    told = r"out of memory in step 7.*Tried to allocate 2\.00 GiB"
    with pytest.raises(OutOfMemory, match=told) as caught, watching_memory(lambda: "in step 7"):
        raise torch.OutOfMemoryError(CUDA_SAYS + "\nmore lines")
    assert "more lines" not in str(caught.value)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="of another kind") as caught, watching_memory(lambda: "in step 7"):
        raise RuntimeError("of another kind")
    assert not isinstance(caught.value, RunFailed)


@pytest.fixture
def full(monkeypatch):
    """The loss finds no room, as it would on a GPU that is too small."""

    def no_room(*args, **kwargs):
        raise torch.OutOfMemoryError(CUDA_SAYS)

    monkeypatch.setattr(trainer, "distillation_loss", no_room)


def test_a_run_that_finds_no_room_ends_with_its_step_and_leaves_it_in_its_folder(overlay, train, full, tmp_path):
    with pytest.raises(OutOfMemory, match="out of memory in step 1"):
        train(overlay("stage2_llm_lora"))
    assert Evidence.read(tmp_path / "run").failure.startswith("out of memory in step 1")


def test_train_prints_the_memory_plan_and_the_nearest_knobs(overlay, full, vltool):
    code, out, err = vltool("train", str(overlay("stage2_llm_lora", training={"per_device_train_batch_size": 4})))
    assert code == 1
    assert out == ""
    assert "memory of each GPU" in err
    assert "needed on each GPU" in err
    assert "out of memory in step 1" in err
    # The plan of a tiny model fits into any GPU: the least that there is to do is to look who else is there.
    assert "look for another process on the GPU" in err
    assert "per_device_train_batch_size: 2" in err
    assert "Traceback" not in err
