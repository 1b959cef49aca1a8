"""Facts of this host, and of what nvidia-smi says of another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vltool.audit.host import Disk, Gpu, Host, gib, parse_nvidia_smi, read_host
from vltool.audit.installed import requirements, torch_cuda, versions

MIB = 2**20
TWO = """\
0, NVIDIA H100 80GB HBM3, GPU-aaaa-1, 81559, 4, 9.0, 580.65.06
1, NVIDIA H100 80GB HBM3, GPU-bbbb-2, 81559, 40123, 9.0, 580.65.06
"""


def test_this_host_is_read_without_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from vltool.audit.host import read_host\n"
        f"host = read_host([Path({str(tmp_path / 'not' / 'there')!r})])\n"
        "assert host.cpus > 0 and host.memory > 0 and host.python\n"
        "assert not {'torch', 'transformers', 'swift', 'peft', 'deepspeed'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_folder_that_is_not_there_yet_lies_on_the_disk_above_it(tmp_path):
    host = read_host(
        [tmp_path, tmp_path / "a" / "b"], {"NCCL_DEBUG": "WARN", "HOME": "/x", "CUDA_VISIBLE_DEVICES": "0"}
    )
    here, below = host.disks[str(tmp_path)], host.disks[str(tmp_path / "a" / "b")]
    assert here.device == below.device == tmp_path.stat().st_dev
    assert here.free > 0
    assert here.kind
    assert host.environment == {"NCCL_DEBUG": "WARN", "CUDA_VISIBLE_DEVICES": "0"}


def test_kinds_of_file_systems():
    assert Disk(device=1, free=0, kind="nfs4").network
    assert Disk(device=1, free=0, kind="lustre").network
    assert not Disk(device=1, free=0, kind="ext4").network
    assert Disk(device=1, free=0, kind="tmpfs").in_memory
    assert not Disk(device=1, free=0, kind="xfs").in_memory


def test_what_is_installed_here_agrees_with_torch():
    torch = pytest.importorskip("torch")
    assert torch_cuda() == torch.version.cuda
    found = versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    declared = {(one.of, one.name): one.specifier for one in requirements(found)}
    assert "5.20" in declared["ms-swift", "transformers"]
    # Of other packages' extras nothing is asked.
    assert ("transformers", "deepspeed") not in declared


def test_nvidia_smi_is_read():
    driver, gpus = parse_nvidia_smi(TWO)
    assert driver == "580.65.06"
    first = Gpu(
        index=0, name="NVIDIA H100 80GB HBM3", uuid="GPU-aaaa-1", memory=81559 * MIB, used=4 * MIB, capability=(9, 0)
    )
    assert gpus[0] == first
    assert gpus[1].used == 40123 * MIB
    assert str(first) == "GPU 0 (NVIDIA H100 80GB HBM3)"


def test_what_nvidia_smi_does_not_know_is_left_open():
    text = "0, Tesla K80, GPU-1, 11441, [N/A], [Not Supported], 470.1\nNo devices were found\n1, broken\n"
    assert parse_nvidia_smi(text) == ("470.1", (Gpu(index=0, name="Tesla K80", uuid="GPU-1", memory=11441 * MIB),))
    assert parse_nvidia_smi("") == (None, ())


def test_the_gpus_of_a_run_are_those_that_its_environment_names():
    host = Host(gpus=parse_nvidia_smi(TWO)[1])
    assert [gpu.index for gpu in host.gpus_of({}, 1)] == [0]
    assert [gpu.index for gpu in host.gpus_of({}, 4)] == [0, 1]
    assert [gpu.index for gpu in host.gpus_of({"CUDA_VISIBLE_DEVICES": "1,0"}, 2)] == [1, 0]
    assert [gpu.index for gpu in host.gpus_of({"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}, 2)] == [1]
    assert host.gpus_of({"CUDA_VISIBLE_DEVICES": "-1"}, 2) == []
    assert host.gpus_of({"CUDA_VISIBLE_DEVICES": "MIG-1234"}, 1) is None


def test_sizes_are_told_as_people_read_them():
    assert [gib(2**31), gib(3.5 * MIB)] == ["2.0 GiB", "4 MiB"]
