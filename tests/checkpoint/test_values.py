"""What tensors hold: counts and norms against numpy and torch, for every type of element."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from weights import write_weights

from vltool.checkpoint.inspection import inspect
from vltool.checkpoint.values import CHUNK, DECODERS, EDGES, PIECE, Values, count, survey
from vltool.errors import BadContent

UP = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight"


def counted(array, dtype):
    values = Values()
    count(np.ascontiguousarray(array).view(np.uint8).reshape(-1), DECODERS[dtype], values)
    return values


@pytest.mark.parametrize(
    ("dtype", "bits", "name"),
    [
        ("BF16", 16, "bfloat16"), ("F16", 16, "float16"), ("F8_E4M3", 8, "float8_e4m3fn"),
        ("F8_E5M2", 8, "float8_e5m2"),
    ],
)  # fmt: skip
def test_every_number_of_a_narrow_type_is_read_as_torch_reads_it(dtype, bits, name):
    torch = pytest.importorskip("torch")
    every = np.arange(2**bits, dtype=f"uint{bits}")
    want = torch.from_numpy(every).view(getattr(torch, name)).double()
    finite = want[want.isfinite()]
    values = counted(every, dtype)
    assert (values.nan, values.inf, values.zeros) == (int(want.isnan().sum()), int(want.isinf().sum()), 2)
    assert values.largest == finite.abs().max().item()
    assert values.norm == pytest.approx(finite.norm().item(), rel=1e-6)
    places = torch.bucketize(finite.abs()[finite != 0], torch.tensor([10.0**edge for edge in EDGES]), right=True)
    assert values.histogram == torch.bincount(places, minlength=len(EDGES) + 1).tolist()


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
@example([3.4028234663852886e38])
@example([1e-45])
@settings(max_examples=150, deadline=None)
def test_floats_are_counted_as_numpy_counts_them(numbers):
    for kind, dtype in (("float32", "F32"), ("float64", "F64")):
        array = np.array(numbers, kind)
        values, finite = counted(array, dtype), array[np.isfinite(array)].astype(np.float64)
        assert (values.elements, values.nan, values.inf) == (array.size, np.isnan(array).sum(), np.isinf(array).sum())
        assert values.zeros == (array == 0).sum()
        # Subnormal numbers of float32 may be flushed where they are halved; they are below this in any case.
        assert values.norm == pytest.approx(np.linalg.norm(finite), rel=1e-5, abs=1e-37)
        assert values.largest == pytest.approx(max(abs(finite), default=0.0), rel=1e-6)


def test_norms_beyond_the_square_of_float32():
    assert counted(np.full(4, 1e30, np.float32), "F32").norm == pytest.approx(2e30)
    assert counted(np.full(4, 1e-30, np.float32), "F32").norm == pytest.approx(2e-30)
    assert counted(np.full(4, 1e300), "F64").norm == pytest.approx(2e150)


@pytest.mark.parametrize("size", [1, 2, 3, CHUNK - 1, CHUNK + 1, 3 * CHUNK + 7])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F32"])
def test_no_element_is_lost_between_chunks(size, dtype):
    array = np.full(size, 0x38, np.uint8) if dtype == "F8_E4M3" else np.ones(size, np.float32)
    array[-1] = 0
    values = counted(array, dtype)
    assert (values.elements, values.zeros) == (size, 1)
    assert values.norm == pytest.approx((size - 1) ** 0.5, rel=1e-6)


def test_a_checkpoint_is_counted_by_tower(tmp_path):
    bad = np.array([[1, np.nan], [np.inf, 2]], np.float32)
    tensors = {
        "model.visual.blocks.0.attn.qkv.weight": bad,
        "model.visual.blocks.1.attn.qkv.weight": np.zeros((2, 2), np.float16),
        "model.language_model.norm.weight": np.full(4, 2, np.float64),
        "model.visual.patch_embed.position_ids": np.arange(4),
        "model.language_model.layers.0.empty": np.zeros((0, 3), np.float32),
    }
    write_weights(tmp_path / "model.safetensors", tensors)
    seen = []
    found = survey(inspect(tmp_path).tensors, progress=lambda done, total: seen.append((done, total)))
    assert found.towers["vision"].to_json() | {"histogram": None, "norm": None} == {
        "elements": 8, "nan": 1, "inf": 1, "zeros": 4, "largest": 2.0, "histogram": None, "norm": None,
    }  # fmt: skip
    assert found.towers["language"].norm == 4.0
    assert list(found.not_finite) == ["model.visual.blocks.0.attn.qkv.weight"]
    assert found.zero_weights == ["model.visual.blocks.1.attn.qkv.weight"]
    assert found.not_decoded == {}
    assert seen[-1][0] == seen[-1][1] == 16 + 8 + 32 + 32


def test_a_factor_that_is_zero_is_told_from_one_that_is_not(tmp_path):
    names = [UP, UP.replace("layers.0", "layers.1")]
    write_weights(tmp_path / "adapter_model.safetensors", {names[0]: np.zeros((4, 2), np.float32), names[1]: (4, 2)})
    found = survey(inspect(tmp_path).tensors)
    assert (found.zero_up, found.up_factors) == ([names[0]], 2)


def test_memory_does_not_grow_with_a_tensor(tmp_path):
    """Ten pieces; the file is sparse, and its pages are this process's memory only while they are read."""
    write_weights(tmp_path / "model.safetensors", {"w": np.zeros(0, np.float32)})
    size = 10 * PIECE
    raw = f'{{"w":{{"dtype":"BF16","shape":[{size // 2}],"data_offsets":[0,{size}]}}}}'.encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + size)
    tensors = inspect(tmp_path).tensors
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = survey(tensors)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert found.towers["language"].zeros == size // 2
    assert grown < 3 * PIECE


def test_a_file_that_shrinks_is_named(tmp_path):
    write_weights(tmp_path / "model.safetensors", {"w": (4, 4)})
    tensors = inspect(tmp_path).tensors
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-4])
    with pytest.raises(BadContent, match="became shorter"):
        survey(tensors)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BadContent, match="cannot be read"):
        survey(tensors)
