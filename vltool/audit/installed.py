"""Which packages of the training stack are installed, in which versions, and what they declare of each other.

Imports none of them.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PACKAGES = (
    "torch", "torchvision", "ms-swift", "transformers", "peft", "trl", "accelerate", "deepspeed", "flash-attn",
    "kernels", "liger-kernel", "bitsandbytes", "triton", "qwen-vl-utils", "tensorboard",
)  # fmt: skip
"""Distributions of the training stack."""
_CUDNN = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What one installed package declares of another."""

    of: str
    name: str
    specifier: str
    """Such as `>=4.6,<4.7`; empty for any version."""


def versions() -> dict[str, str]:
    """Version of each of `PACKAGES` that is installed, and of cuDNN as `cudnn`."""
    found = {name: version for name in PACKAGES if (version := _version(name)) is not None}
    cudnn = next((version for name in _CUDNN if (version := _version(name)) is not None), None)
    return found if cudnn is None else found | {"cudnn": cudnn}


def _canonical(name: str) -> str:
    """A distribution's name as indexes compare it. Source: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


_DECLARED = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;\s*(.*))?$")
"""A line of Requires-Dist: name, extras, versions, when it counts."""
_OF_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


def requirements(packages: Mapping[str, str]) -> list[Requirement]:
    """What is declared of the packages, by each other and by vltool, whose extras count where they are installed."""
    found = []
    for of in ("vltool", *packages):
        try:
            lines = importlib.metadata.requires(of) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in lines:
            matched = _DECLARED.match(line)
            if matched is None or (name := _canonical(matched[1])) not in packages:
                continue
            extra = _OF_EXTRA.search(matched[3] or "")
            if extra is not None and of != "vltool":
                continue
            requirement = Requirement(of=of, name=name, specifier=matched[2].strip())
            if requirement not in found and not _elsewhere(matched[3] or ""):
                found.append(requirement)
    return found


def _elsewhere(marker: str) -> bool:
    """Whether a requirement is for other systems or other Pythons; in doubt it is."""
    rest = _OF_EXTRA.sub("", marker)
    rest = re.sub(r"""(?:platform_system\s*==\s*['"]Linux['"]|sys_platform\s*==\s*['"]linux['"])""", "", rest)
    return bool(re.sub(r"\band\b|[\s()]", "", rest))


def torch_cuda() -> str | None:
    """The CUDA that torch was built for; None for a torch without, and without torch.

    Read from torch's version file, since importing torch takes seconds.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None
