"""Facts about this host that a run depends on: packages, GPUs, CPUs, memory, disks. Judges nothing."""

from __future__ import annotations

import math
import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vltool.audit.installed import Requirement, requirements, torch_cuda, versions

_VARIABLES = re.compile(r"(?:TORCH_)?NCCL_|CUDA_|PYTORCH_(?:CUDA_)?ALLOC_CONF$")
_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "gluster", "fuse.", "9p", "wekafs", "panfs")
"""How the kernel's names of file systems begin that are read over a network, or by a program that may be."""
_IN_MEMORY = ("tmpfs", "ramfs")
_SECONDS_FOR_NVIDIA_SMI = 15
_MIB = 2**20
_NO_LIMIT = 2**60
"""Bytes above which a control group's limit is none: version 1 writes the largest multiple of a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as nvidia-smi tells it."""

    index: int
    name: str
    uuid: str = ""
    memory: int
    """Bytes."""
    used: int = 0
    """Bytes that are in use now, which no process of the run has any part in."""
    capability: tuple[int, int] | None = None
    """CUDA's compute capability; None where the driver is too old to say."""

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system that a folder lies on, or will."""

    device: int
    """Equal for folders that share the same room."""
    free: int
    """Bytes."""
    kind: str = ""
    """The kernel's name of the file system, such as ext4; empty where it is not known."""
    writable: bool = True
    """Whether the folder, or the nearest above it that exists, may be written to."""

    @property
    def network(self) -> bool:
        """Whether other hosts may see the same files."""
        return self.kind.startswith(_NETWORK)

    @property
    def in_memory(self) -> bool:
        """Whether its files are gone with the host."""
        return self.kind in _IN_MEMORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What is here. Sizes are bytes; None stands for what could not be told, or has no limit."""

    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of each package of the training stack that is installed (`vltool.audit.installed`)."""
    requirements: tuple[Requirement, ...] = ()
    """What vltool and the packages declare of each other."""
    python: str = ""
    torch_cuda: str | None = None
    """The CUDA that torch was built for; None for a torch without, and without torch."""
    driver: str | None = None
    gpus: tuple[Gpu, ...] = ()
    cpus: float = 1.0
    """That this process may use at once: the least of its affinity and its control group's quota."""
    memory: int | None = None
    """That the processes here may use: the host's, or its container's limit."""
    shm_free: int | None = None
    """Of /dev/shm."""
    open_files: int | None = None
    """The soft limit of a process."""
    open_files_most: int | None = None
    """The hard limit, to which a user may raise the soft one."""
    locked_memory: int | None = None
    disks: Mapping[str, Disk] = field(default_factory=dict)
    """Of each folder that was asked for, by the folder."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of NCCL, CUDA and torch's allocator."""

    def gpus_of(self, environment: Mapping[str, str], count: int) -> list[Gpu] | None:
        """The GPUs that `count` processes would get, one each; None where `CUDA_VISIBLE_DEVICES` names none of them.

        environment: with `CUDA_VISIBLE_DEVICES`, where it is set.
        """
        named = environment.get("CUDA_VISIBLE_DEVICES")
        if named is None:
            return list(self.gpus[:count])
        chosen = []
        for name in filter(None, (part.strip() for part in named.split(","))):
            if name == "-1":
                break
            found = [gpu for gpu in self.gpus if str(gpu.index) == name or (gpu.uuid and gpu.uuid.startswith(name))]
            if not found:
                # A slice of a GPU (MIG), or a number that is not there: not for nvidia-smi's list to say.
                return None
            chosen += found[:1]
        return chosen[:count]


def read_host(folders: Iterable[Path] = (), environment: Mapping[str, str] | None = None) -> Host:
    """What this host is, now. Imports nothing that it looks for; what cannot be found is left out.

    folders: those whose disks are looked at, which need not exist yet. environment: by default this process's.
    """
    shell = os.environ if environment is None else environment
    packages = versions()
    driver, gpus = _nvidia_smi()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Host(
        packages=packages,
        requirements=tuple(requirements(packages)),
        python=platform.python_version(),
        torch_cuda=torch_cuda(),
        driver=driver,
        gpus=gpus,
        cpus=_cpus(),
        memory=_memory(),
        shm_free=_free(Path("/dev/shm")),
        open_files=None if soft == resource.RLIM_INFINITY else soft,
        open_files_most=None if hard == resource.RLIM_INFINITY else hard,
        locked_memory=_locked_memory(),
        disks={str(folder): _disk(folder) for folder in folders},
        environment={name: value for name, value in shell.items() if _VARIABLES.match(name)},
    )


def _nvidia_smi() -> tuple[str | None, tuple[Gpu, ...]]:
    """The driver and the GPUs; nothing without nvidia-smi, or where it does not answer in time."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, ()
    asked = "index,name,uuid,memory.total,memory.used,compute_cap,driver_version"
    try:
        done = subprocess.run(
            [program, f"--query-gpu={asked}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=False, timeout=_SECONDS_FOR_NVIDIA_SMI,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None, ()
    return parse_nvidia_smi(done.stdout) if done.returncode == 0 else (None, ())


def parse_nvidia_smi(text: str) -> tuple[str | None, tuple[Gpu, ...]]:
    """The driver's version and the GPUs of `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`."""
    gpus, driver = [], None
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 7 or not parts[0].isdecimal() or not parts[3].isdecimal():
            continue
        capability = re.fullmatch(r"(\d+)\.(\d+)", parts[5])
        gpus.append(
            Gpu(
                index=int(parts[0]),
                name=parts[1],
                uuid=parts[2],
                memory=int(parts[3]) * _MIB,
                used=int(parts[4]) * _MIB if parts[4].isdecimal() else 0,
                capability=(int(capability[1]), int(capability[2])) if capability else None,
            )
        )
        driver = parts[6] if re.fullmatch(r"[\d.]+", parts[6]) else driver
    return driver, tuple(gpus)


def _cpus() -> float:
    count = float(len(os.sched_getaffinity(0)))
    for folder in _groups("cpu"):
        quota = _text(folder / "cpu.max").split()
        if len(quota) != 2:
            quota = [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")]
        if all(part.isdecimal() for part in quota) and int(quota[1]):
            count = min(count, int(quota[0]) / int(quota[1]))
    return count


def _memory() -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    limits = [int(found[1]) * 1024] if found else []
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text.isdecimal() and int(text) < _NO_LIMIT:
                limits.append(int(text))
    return min(limits, default=None)


def _groups(controller: str) -> list[Path]:
    """This process's control group and those above it, of version 2 and of version 1's `controller`.

    In a container the files lie where the hierarchy is mounted, whatever the group is called outside.
    """
    root = Path("/sys/fs/cgroup")
    folders = [root, root / controller]
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        number, names, path = ([*line.split(":", 2), "", ""])[:3]
        if number == "0" or controller in names.split(","):
            mounted = root if number == "0" else root / controller
            place = mounted / path.lstrip("/")
            folders += [place, *(above for above in place.parents if above.is_relative_to(mounted))]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _locked_memory() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _disk(folder: Path) -> Disk:
    """The disk of a folder, or of the nearest one above it that exists."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    writable = os.access(place, os.W_OK | os.X_OK)
    return Disk(device=place.stat().st_dev, free=_free(place) or 0, kind=_kind(place.resolve()), writable=writable)


def _kind(place: Path) -> str:
    """The kind of the file system that is mounted nearest above. Source: proc(5), /proc/pid/mountinfo."""
    best, kind = -1, ""
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        mount, _, rest = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 5:
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        # Of several mounts at one place the last hides the others.
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), rest.split(" ")[0]
    return kind


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def gib(size: float) -> str:
    """A size as it is told: 3.4 GiB, 512 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{math.ceil(size / _MIB)} MiB"
