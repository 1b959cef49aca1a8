"""Findings on installed packages: combinations that are known to be bad, each with its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from vltool.audit.finding import Finding, Rule
from vltool.audit.host import Host
from vltool.audit.versions import within
from vltool.run.deepspeed import zero_stage
from vltool.run.plan import RunPlan

_COMPATIBILITY = "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"

RULES: tuple[Rule, ...] = (
    Rule(
        id="host-packages",
        severity="warning",
        means="an installed package is outside the versions that vltool or another package declares",
        why=(
            "Packages of the training stack reach into each other, and change without notice what others use. pip "
            "installs such a combination all the same when one of them is installed by itself."
        ),
        remedy="Install all of it at once: pip install 'vltool[train]', with the extras that the recipe needs.",
    ),
    Rule(
        id="host-peft-import",
        severity="error",
        means="this peft cannot be imported beside this transformers",
        why=(
            "peft before 0.18 imports a class that transformers 5 has removed. The run ends with an ImportError when "
            "the training stack is loaded."
        ),
        remedy="Install peft 0.18 or newer.",
        source="https://github.com/huggingface/transformers/pull/41889",
    ),
    Rule(
        id="host-conv3d",
        severity="warning",
        means="torch 2.9 computes the vision tower's first layer without cuDNN",
        why=(
            "The patch embedding of Qwen3-VL is a 3D convolution. torch 2.9 turned cuDNN off for those in 16 bits, and "
            "what takes its place is many times slower and takes more memory; 2.9.1 turns it on again beside cuDNN "
            "9.15. ms-swift 4.6 replaces that layer's forward pass under torch 2.9; older ones may not."
        ),
        remedy="Install torch 2.10 or newer.",
        source="https://github.com/pytorch/pytorch/issues/166122",
    ),
    Rule(
        id="host-zero2-gradients",
        severity="error",
        means="this DeepSpeed computes wrong gradients under ZeRO-2",
        why=(
            "From 0.17.6 to 0.18.2 gradients under ZeRO-2 come out too small, without a word: the loss looks right at "
            "first and training is worse. ZeRO-3 is not concerned."
        ),
        remedy="Install deepspeed 0.18.3 or newer, or write deepspeed.config: zero3.",
        source="https://github.com/deepspeedai/DeepSpeed/issues/7718",
    ),
    Rule(
        id="host-flash-attn-build",
        severity="warning",
        means="this flash-attn was likely built for another torch",
        why=(
            "flash-attn is compiled against one version of torch's C++ library. The wheels of 2.7 were built for torch "
            "2.6 and older, and under newer ones end the run with an undefined symbol when they are imported."
        ),
        remedy="Install flash-attn 2.8 or newer for this torch, or leave model.attn_impl to its default.",
        source="https://github.com/Dao-AILab/flash-attention/issues/1644",
    ),
    Rule(
        id="host-driver",
        severity="error",
        means="the GPU's driver is older than torch's CUDA needs",
        why="torch finds no GPU then, and the run ends, or trains on the CPU.",
        remedy=(
            "Update the driver (525 or newer for CUDA 12, 580 or newer for CUDA 13), or install a torch that was built "
            "for an older CUDA."
        ),
        source=_COMPATIBILITY,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBad:
    """A combination of versions, each within a range, that is known to fail."""

    id: str
    versions: Mapping[str, str]
    """Package -> range; all of them have to be installed, in these ranges."""
    what: str
    concerns: Callable[[RunPlan], bool] = lambda plan: True
    """Whether a run meets it."""
    mended_by: tuple[Mapping[str, str], ...] = ()
    """Combinations, any of which takes the harm away."""


def _zero2(plan: RunPlan) -> bool:
    return zero_stage(plan.arguments.get("deepspeed")) == 2


def _flash(plan: RunPlan) -> bool:
    return str(plan.arguments.get("attn_impl")).startswith(("flash_attention_2", "flash_attn"))


KNOWN_BAD = (
    KnownBad(
        id="host-peft-import",
        versions={"transformers": ">=5.0", "peft": "<0.18"},
        what="peft cannot be imported beside transformers 5",
    ),
    KnownBad(
        id="host-conv3d",
        versions={"torch": ">=2.9,<2.10"},
        what="the vision tower's 3D convolution runs without cuDNN",
        concerns=lambda plan: not plan.arguments.get("use_cpu"),
        # swift/model/utils.py, _patch_conv3d; pytorch/pytorch#167111.
        mended_by=({"ms-swift": ">=4.6"}, {"torch": ">=2.9.1", "cudnn": ">=9.15"}),
    ),
    KnownBad(
        id="host-zero2-gradients",
        versions={"deepspeed": ">=0.17.6,<0.18.3"},
        what="gradients under ZeRO-2 come out wrong",
        concerns=_zero2,
    ),
    KnownBad(
        id="host-flash-attn-build",
        versions={"flash-attn": "<2.8", "torch": ">=2.7"},
        what="wheels of this flash-attn were built for torch 2.6 and older",
        concerns=_flash,
    ),
)
"""What was read at the sources that `RULES` names, and nothing else."""

DRIVERS = {12: 525, 13: 580}
"""The oldest driver that runs programs of each CUDA version. Source: NVIDIA, "CUDA Compatibility", table 1."""

_BY_ID = {rule.id: rule for rule in RULES}


def judge_versions(plan: RunPlan, host: Host) -> list[Finding]:
    """What there is to say of this host's packages and driver, for a run of this plan."""
    return [*_known_bad(plan, host), *_driver(plan, host), *_declared(host)]


def _all_within(packages: Mapping[str, str], ranges: Mapping[str, str]) -> bool:
    return all(name in packages and within(packages[name], wanted) for name, wanted in ranges.items())


def _known_bad(plan: RunPlan, host: Host) -> Iterator[Finding]:
    for bad in KNOWN_BAD:
        if not _all_within(host.packages, bad.versions) or not bad.concerns(plan):
            continue
        if any(_all_within(host.packages, mended) for mended in bad.mended_by):
            continue
        installed = ", ".join(f"{name} {host.packages[name]}" for name in bad.versions)
        yield _BY_ID[bad.id].finds(f"{bad.what} ({installed})")


def _driver(plan: RunPlan, host: Host) -> Iterator[Finding]:
    if host.torch_cuda is None or host.driver is None or plan.arguments.get("use_cpu"):
        return
    oldest = DRIVERS.get(int(host.torch_cuda.split(".")[0]))
    if oldest is not None and int(host.driver.split(".")[0]) < oldest:
        what = f"the GPU's driver is {host.driver}, and torch's CUDA {host.torch_cuda} needs {oldest} or newer"
        yield _BY_ID["host-driver"].finds(what)


def _declared(host: Host) -> Iterator[Finding]:
    for wanted in host.requirements:
        have = host.packages.get(wanted.name)
        if have is not None and not within(have, wanted.specifier):
            what = f"{wanted.name} {have} is installed, and {wanted.of} declares {wanted.name}{wanted.specifier}"
            yield _BY_ID["host-packages"].finds(what)
