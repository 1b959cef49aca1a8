"""Findings on this host, for a run of a plan: GPUs, processes, memory, limits, environment.

Findings on its packages are in `version_rules`, those on its disks in `disk_rules`; `judge_host` reports all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vltool.audit import disk_rules, environment_rules, version_rules
from vltool.audit.activations import FP32
from vltool.audit.anatomy import read_anatomy
from vltool.audit.disk_rules import judge_disks, place
from vltool.audit.environment_rules import judge_environment
from vltool.audit.finding import Finding, Rule, Severity
from vltool.audit.host import Gpu, Host, gib
from vltool.audit.memory_plan import batch_of
from vltool.audit.memory_resident import resident
from vltool.audit.memory_terms import Terms
from vltool.audit.version_rules import judge_versions
from vltool.errors import BadContent, InvalidInput
from vltool.run.plan import RunPlan

_FLASH = "https://github.com/Dao-AILab/flash-attention"

RULES: tuple[Rule, ...] = (
    Rule(
        id="host-stack",
        severity="note",
        means="the training stack is not installed here",
        why="A recipe can be checked without it; train ends with exit code 3. Versions cannot be judged here.",
        remedy="Install vltool[train] on the host that trains, and check there again.",
    ),
    Rule(
        id="host-gpu",
        severity="note",
        means="no NVIDIA GPU is to be seen here",
        why="A recipe can be checked without one. What depends on the GPU is judged on the host that has it.",
        remedy="Check again on the host that trains; or write training.use_cpu: true for a run on the CPU.",
    ),
    Rule(
        id="host-gpus",
        severity="error",
        means="there are fewer GPUs than processes",
        why="Each process of a run takes one GPU, and two on one would not fit or wait for each other.",
        remedy="Lower launch.nproc_per_node (auto takes one a GPU), or look at CUDA_VISIBLE_DEVICES.",
    ),
    Rule(
        id="host-gpu-busy",
        severity="warning",
        means="another process uses memory of a GPU that the run would take",
        why="What is in use is missing: a run that fits into the whole GPU ends out of memory at a long record.",
        remedy="End the other process (nvidia-smi names it), or choose other GPUs with CUDA_VISIBLE_DEVICES.",
        covers="troubleshooting: OOM",
    ),
    Rule(
        id="host-bf16",
        severity="warning",
        means="the GPU does not compute in bfloat16",
        why="GPUs before compute capability 8.0 (Ampere) emulate it, which is many times slower.",
        remedy="Train on a newer GPU, or in fp32: write bf16: false and torch_dtype: float32.",
        covers="FAQ: Training Speed, bf16",
    ),
    Rule(
        id="host-flash-attn",
        severity="error",
        means="the recipe asks for flash attention, which this host cannot run",
        why=(
            "Version 2 needs the flash-attn package and a GPU of compute capability 8.0 or newer, version 3 one of "
            "9.0. The run ends while the model is loaded."
        ),
        remedy="Install flash-attn, or take attn_impl out: torch's own attention (sdpa) needs no package.",
        covers="FAQ: Training Speed, Flash Attention 2",
        source=_FLASH,
    ),
    Rule(
        id="host-deepspeed",
        severity="error",
        means="the recipe asks for DeepSpeed, which is not installed",
        why="train ends with exit code 3 before anything is loaded.",
        remedy="Install vltool[deepspeed], or write enabled: false under deepspeed.",
    ),
    Rule(
        id="host-bitsandbytes",
        severity="error",
        means="the recipe packs the base into 4 bits, for which bitsandbytes is not installed",
        why="train ends with exit code 3 before anything is loaded.",
        remedy="Install vltool[quantization], or take quant_method out.",
    ),
    Rule(
        id="host-shm",
        severity="error",
        means="/dev/shm is too small for the batches that workers make",
        why=(
            "Workers hand batches over in shared memory, several ahead of the step. When it is full, a worker ends "
            "with a bus error and the run with it. Containers get 64 MiB unless they ask for more."
        ),
        remedy=(
            "Start the container with more (docker's --shm-size or --ipc=host), or lower dataloader_num_workers or "
            "dataloader_prefetch_factor."
        ),
        source="https://github.com/pytorch/pytorch#docker-image",
    ),
    Rule(
        id="host-workers",
        severity="warning",
        means="there are more loading workers than CPUs",
        why="Workers take turns then, and take the CPU from the processes that feed the GPUs, which wait.",
        remedy="Lower data.dataloader_num_workers, or give the run more CPUs.",
        covers="FAQ: Training stuck at 0% GPU utilization",
    ),
    Rule(
        id="host-open-files",
        severity="warning",
        means="a process may open fewer files than its workers need",
        why=(
            "Each tensor that a worker hands over holds a file descriptor until the step has used it. Beyond the limit "
            "the run ends with: too many open files."
        ),
        remedy="Raise the limit (ulimit -n), or lower dataloader_num_workers or dataloader_prefetch_factor.",
        source="https://docs.pytorch.org/docs/stable/multiprocessing.html",
    ),
    Rule(
        id="host-memory",
        severity="warning",
        means="what is offloaded does not fit into the host's memory",
        why="The kernel ends a process that goes beyond the host's or its container's memory, without a word.",
        remedy="Offload less (deepspeed.config, rlhf.offload_teacher_model), or give the run more memory.",
    ),
    *environment_rules.RULES,
    *version_rules.RULES,
    *disk_rules.RULES,
)

BUSY = 512 * 2**20
"""Bytes in use on a GPU below which nothing is said: a desktop, or what the driver keeps."""
_OLDEST_BF16 = (8, 0)
_TENSORS_OF_A_BATCH = 12
_OTHER_FILES = 256
"""Descriptors of a process beside those of batches: libraries, sockets, logs, the records' files."""
_HANDED_OVER_A_TOKEN = 64
"""Bytes of a token's id, label, mask and three positions, in int64."""

_BY_ID = {rule.id: rule for rule in RULES}


def judge_host(plan: RunPlan, host: Host, *, records: int | None = None) -> list[Finding]:
    """All that there is to say of a host on which the plan is to run.

    records: samples of an epoch, where they were counted. Nothing here starts torch. Where the training stack is
    missing that is a note; so is a missing GPU, without which this is not the host that trains, and nothing is said
    of its processors, memory and disks; of a host without either nothing is said at all.
    """
    if "torch" not in host.packages and not host.gpus:
        return []
    findings = list(_gpus(plan, host))
    if "torch" in host.packages:
        findings += [*_packages(plan, host), *judge_versions(plan, host)]
    else:
        findings.append(
            _BY_ID["host-stack"].finds("the training stack is not installed here, so that its versions are unknown")
        )
    if not host.gpus and not plan.arguments.get("use_cpu"):
        return findings
    terms = _terms(plan)
    findings += [*_loading(plan, host, terms), *judge_environment(plan, host)]
    if terms is not None:
        findings += _host_memory(plan, host, terms)
    return [*findings, *judge_disks(plan, host, terms, records=records)]


def _terms(plan: RunPlan) -> Terms | None:
    """The plan's sizes; None for tuners that are not counted and bases that cannot be read, which others report."""
    try:
        anatomy = read_anatomy(Path(plan.original), plan.tuner, plan.arguments)
    except (InvalidInput, BadContent):
        return None
    return Terms(plan, anatomy, batch_of(plan, anatomy))


def _gpus(plan: RunPlan, host: Host) -> Iterator[Finding]:
    if plan.arguments.get("use_cpu"):
        return
    if not host.gpus:
        yield _BY_ID["host-gpu"].finds("no NVIDIA GPU is to be seen here (nvidia-smi)")
        return
    count = plan.launch.nproc_per_node
    gpus = host.gpus_of(dict(plan.env) | dict(host.environment), count)
    if gpus is None:
        return
    if len(gpus) < count:
        what = f"the run wants {count} processes on this node, which has {len(gpus)} GPUs to see"
        yield _BY_ID["host-gpus"].finds(what)
    for gpu in gpus:
        if gpu.used > BUSY:
            what = f"{gib(gpu.used)} of {gib(gpu.memory)} of {gpu} are in use by another process"
            yield _BY_ID["host-gpu-busy"].finds(what)
    yield from _capability(plan, gpus)


def _capability(plan: RunPlan, gpus: list[Gpu]) -> Iterator[Finding]:
    """What the oldest GPU cannot do."""
    oldest = min((gpu for gpu in gpus if gpu.capability), key=lambda gpu: gpu.capability or (0, 0), default=None)
    if oldest is None or oldest.capability is None:
        return
    is_of = f"{oldest} is of compute capability {'.'.join(map(str, oldest.capability))}"
    if plan.arguments.get("bf16") and oldest.capability < _OLDEST_BF16:
        yield _BY_ID["host-bf16"].finds(f"bf16 is emulated: {is_of}, and needs 8.0", where=place(plan, "bf16"))
    wanted = str(plan.arguments.get("attn_impl") or "")
    least = (9, 0) if wanted.startswith("flash_attention_3") else _OLDEST_BF16
    if wanted.startswith("flash") and oldest.capability < least:
        what = f"attn_impl: {wanted} needs compute capability {least[0]}.{least[1]}, and {is_of}"
        yield _BY_ID["host-flash-attn"].finds(what, where=place(plan, "attn_impl"))


def _packages(plan: RunPlan, host: Host) -> Iterator[Finding]:
    """What the recipe asks for and is not installed."""
    wanted = str(plan.arguments.get("attn_impl") or "")
    # transformers takes a compiled kernel of the `kernels` package in flash-attn's place.
    if wanted in ("flash_attention_2", "flash_attn") and not {"flash-attn", "kernels"} & host.packages.keys():
        what = f"attn_impl: {wanted}, and flash-attn is not installed"
        yield _BY_ID["host-flash-attn"].finds(what, where=place(plan, "attn_impl"))
    if "deepspeed" in plan.arguments and "deepspeed" not in host.packages:
        yield _BY_ID["host-deepspeed"].finds("DeepSpeed is not installed", where=place(plan, "deepspeed"))
    if plan.arguments.get("quant_method") == "bnb" and "bitsandbytes" not in host.packages:
        yield _BY_ID["host-bitsandbytes"].finds("bitsandbytes is not installed", where=place(plan, "quant_method"))


def _loading(plan: RunPlan, host: Host, terms: Terms | None) -> Iterator[Finding]:
    """Workers against CPUs, shared memory and open files."""
    given = plan.arguments.get("dataloader_num_workers")
    workers = 1 if given is None else int(given)
    ahead = int(plan.arguments.get("dataloader_prefetch_factor") or 2)
    processes = plan.launch.nproc_per_node
    if not workers:
        return
    all_workers = workers * processes
    if all_workers > host.cpus:
        each = f"{workers} workers for each of {processes} processes" if processes > 1 else f"{workers} workers"
        what = f"{each}, and {host.cpus:g} CPU{'s' * (host.cpus != 1)} to use"
        yield _BY_ID["host-workers"].finds(what, where=place(plan, "dataloader_num_workers"))
    needed = _OTHER_FILES + workers * (ahead + 1) * _TENSORS_OF_A_BATCH
    if host.open_files is not None and needed > host.open_files:
        may = "" if host.open_files_most is None else f", which may be raised to {host.open_files_most}"
        what = f"a process with {workers} workers opens about {needed} files, and its limit is {host.open_files}{may}"
        yield _BY_ID["host-open-files"].finds(what, where=place(plan, "dataloader_num_workers"))
    if terms is None or host.shm_free is None:
        return
    batch = terms.patches * terms.anatomy.vision.patch_values * FP32 + terms.tokens * _HANDED_OVER_A_TOKEN
    together = batch * (ahead + 1) * all_workers
    if together <= host.shm_free:
        return
    # Below one batch a worker nothing goes; in between it depends on how far the workers get ahead.
    certain = batch * processes > host.shm_free
    what = (
        f"{all_workers} worker{'s' * (all_workers != 1)} with {ahead} batches ahead and one in the making, each of at "
        f"most {gib(batch)}, fill {gib(together)} of /dev/shm, which has {gib(host.shm_free)} free"
    )
    severity: Severity = "error" if certain else "warning"
    yield _BY_ID["host-shm"].finds(what, where=place(plan, "dataloader_num_workers"), severity=severity)


def _host_memory(plan: RunPlan, host: Host, terms: Terms) -> Iterator[Finding]:
    if host.memory is None:
        return
    rows = resident(terms)[1]
    needed = sum(row.bytes for row in rows) * plan.launch.nproc_per_node
    if needed > host.memory:
        names = ", ".join(row.name for row in rows)
        what = f"the host's memory gets {gib(needed)} of {names}, and has {gib(host.memory)}"
        yield _BY_ID["host-memory"].finds(what, where=place(plan, "deepspeed"))
