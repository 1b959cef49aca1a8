"""A run for which the GPU's memory does not suffice says what it would have taken."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from vltool.audit.host import read_host  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CAP_BYTES = 24 << 20


@pytest.fixture
def little_memory():
    """This process may have but a few MiB of the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(CAP_BYTES / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_run_that_dies_of_it_prints_its_plan_and_what_would_fit(little_memory, overlay, vltool):
    batch = {"per_device_train_batch_size": 4, "effective_batch_size": 4, "gradient_checkpointing": False}
    code, _, err = vltool("train", str(overlay("stage2_llm_lora", training=batch)))
    assert code == 1, err
    assert "out of memory" in err
    assert "tensors held" in err
    assert "memory of each GPU" in err
    assert "Traceback" not in err


def test_the_gpus_are_read_without_torch():
    gpus = read_host().gpus
    assert len(gpus) == torch.cuda.device_count()
    told, seen = gpus[0], torch.cuda.get_device_properties(0)
    assert told.name == seen.name
    assert told.capability == (seen.major, seen.minor)
    assert told.memory == pytest.approx(seen.total_memory, rel=0.02)
