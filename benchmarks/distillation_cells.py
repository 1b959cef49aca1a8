# ruff: noqa: SLF001 - a step is taken apart where no public name reaches
"""What one cell of the distillation benchmark does, in a process of its own."""

from __future__ import annotations

import gc
import inspect
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from distillation_levers import ALIGNER_FULL, LEVERS, LOSS_PATHS, Lever, loss_arguments
from distillation_setup import BATCH, GKD, Size, recipe
from plain_loss import IGNORE, plain_loss, relative
from torch import Tensor
from transformers import TrainerCallback

from vltool.audit.anatomy import read_anatomy
from vltool.audit.model_flops import Batch, step_flops
from vltool.recipe.render import to_yaml
from vltool.recipe.validate import load_recipe
from vltool.run.arguments import TunerPlan
from vltool.run.evidence import to_json
from vltool.run.plan import RunPlan, make_plan
from vltool.training import losses, worker

GIB = 2**30
LANGUAGE_LORA = TunerPlan(
    tuner_type="lora",
    freeze_llm=False,
    freeze_vit=True,
    freeze_aligner=True,
    target_modules=("all-linear",),
    target_regex=None,
    modules_to_save=(),
    frozen_vit_blocks=0,
)
"""What the recipe of every cell trains."""


# --- time and memory --------------------------------------------------------------------------------------


def wait() -> None:
    """Until the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def wait_for_memory(seconds: float = 20.0) -> None:
    """Until the GPU has let go of the cell before."""
    until = time.monotonic() + seconds
    while torch.cuda.is_available() and time.monotonic() < until:
        free, total = torch.cuda.mem_get_info()
        if free > 0.95 * total:
            return
        time.sleep(0.2)


class Stopwatch(TrainerCallback):
    """The time between the ends of optimizer steps, data included, and the memory at its highest."""

    def __init__(self) -> None:
        self._made = self._began = time.perf_counter()
        self._ends: list[float] = []
        self._phases: dict[str, float] = {}
        self._memory: dict[str, float | None] = {"peak_gib": None, "reserved_gib": None}
        self.after: Callable[[], None] = lambda: None
        """Called when training is over and everything is still there."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What loading took does not count."""
        self._began = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        wait()
        self._ends.append(time.perf_counter())
        if torch.cuda.is_available():
            self._memory = {
                "peak_gib": torch.cuda.max_memory_allocated() / GIB,
                "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
            }

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let others look at the model."""
        ended = time.perf_counter()
        self.after()
        self._phases = {"before": self._began - self._made, "training": ended - self._began}
        self._phases["comparing"] = time.perf_counter() - ended

    def result(self, warmup: int) -> dict[str, Any]:
        """Median and all times of the counted steps, in milliseconds, and the memory."""
        times = [1e3 * (end - start) for start, end in zip(self._ends, self._ends[1:], strict=False)][warmup - 1 :]
        found = {"step_ms": statistics.median(times), "steps_ms": times, "phases_s": self._phases}
        return found | self._memory


def timed(work: Callable[[], Any], *, warmup: int, repeats: int) -> float:
    """Median milliseconds."""
    times = []
    for _ in range(warmup + repeats):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[warmup:])


# --- cells ------------------------------------------------------------------------------------------------


def run_cell(name: str, made: dict[str, Any], size: Size) -> dict[str, Any]:
    """Do the cell; what it measured."""
    wait_for_memory()
    kind, _, rest = name.partition("-")
    if kind == "gemm":
        return gemm(size)
    if kind == "loss":
        return loss_alone(rest, size)
    with tempfile.TemporaryDirectory(prefix="cell-") as scratch:
        if kind == "aligner":
            return vltool_cell(
                made, size, "image", Path(scratch), gkd=False, checkpointing=rest == "on", lever=ALIGNER_FULL
            )
        if kind == "lever":
            return vltool_cell(made, size, "image", Path(scratch), gkd=True, checkpointing=True, lever=LEVERS[rest])
        what, shape, checkpointing = rest.split("-")
        cell = vltool_cell if kind == "vltool" else swift_cell
        return cell(made, size, shape, Path(scratch), gkd=what == "gkd", checkpointing=checkpointing == "on")


def _plan(
    made: dict[str, Any], size: Size, shape: str, scratch: Path, *, gkd: bool, checkpointing: bool, lever: Lever | None
) -> tuple[RunPlan, str]:
    """The plan of a recipe, and the resolved recipe's text."""
    document = recipe(made, size, shape, scratch / "run", gkd=gkd, checkpointing=checkpointing)
    for section, keys in ({} if lever is None else lever.overlay).items():
        document[section] = document.get(section, {}) | keys
    path = scratch / "cell.yaml"
    path.write_bytes(to_json(document))
    resolved = load_recipe(str(path))
    return make_plan(resolved, cwd=scratch), to_yaml(resolved)


def vltool_cell(
    made: dict[str, Any],
    size: Size,
    shape: str,
    scratch: Path,
    *,
    gkd: bool,
    checkpointing: bool,
    lever: Lever | None = None,
) -> dict[str, Any]:
    """A run of vltool's worker as `vltool train` starts it, and its losses beside the plain ones."""
    watch, compared = Stopwatch(), {}

    def look(trainer: Any) -> None:
        try:
            compared.update(compare(trainer, made["shapes"][shape], gkd=gkd))
        except Exception as error:  # noqa: BLE001 - the times stand without it
            traceback.print_exc()
            compared["not_compared"] = f"{type(error).__name__}: {' '.join(str(error).split())}"

    class Run(worker._Run):
        """A run with a stopwatch."""

        def _trainer(self) -> Any:
            trainer, records = super()._trainer()
            trainer.add_callback(watch)
            if checkpointing and (lever is None or lever.compares):
                watch.after = partial(look, trainer)
            return trainer, records

    plan, resolved = _plan(made, size, shape, scratch, gkd=gkd, checkpointing=checkpointing, lever=lever)
    with ExitStack() as stack:
        if lever is not None:
            stack.enter_context(lever.around())
        stack.enter_context(patch.object(worker, "_Run", Run))
        worker.run(plan.to_json(), Silent(), resolved_yaml=resolved)
    return watch.result(size.warmup) | compared | _flops(made, shape, gkd=gkd)


def swift_cell(
    made: dict[str, Any], size: Size, shape: str, scratch: Path, *, gkd: bool, checkpointing: bool
) -> dict[str, Any]:
    """A run of ms-swift's own pipeline and trainer, with its own dataset, collator and loss.

    The arguments are those that vltool hands to ms-swift for the same recipe, so that both train alike. For GKD
    the teacher is named as the model itself: with LoRA ms-swift then disables the adapter and loads no second copy,
    which is the best that it has.
    """
    from swift.arguments import RLHFArguments, SftArguments
    from swift.pipelines.train import SwiftRLHF, SwiftSft

    watch = Stopwatch()
    plan, _ = _plan(made, size, shape, scratch, gkd=False, checkpointing=checkpointing, lever=None)
    arguments = plan.arguments | {
        "dataset": [made["shapes"][shape]["files"]["swift"]],
        "split_dataset_ratio": 0.0,
        "save_strategy": "no",
        "lazy_tokenize": True,
        "load_from_cache_file": False,
        "add_version": False,
        "check_model": False,
    }
    if not torch.cuda.is_available():
        arguments["use_cpu"] = True
    if gkd:
        teaching = {name: GKD[name] for name in ("rlhf_type", "beta", "sft_alpha", "lmbda", "temperature")}
        arguments |= teaching | {"teacher_model": arguments["model"], "teacher_model_type": arguments["model_type"]}

    class Measured(SwiftRLHF if gkd else SwiftSft):
        """ms-swift's pipeline with a stopwatch."""

        def train(self, trainer: Any) -> Any:
            trainer.add_callback(watch)
            row = trainer.train_dataset[0]
            # The dataset of GKD holds messages: its trainer encodes them itself.
            require_shape([trainer.template.encode(dict(row)) if gkd else row], made["shapes"][shape])
            return super().train(trainer)

    pipeline = Measured((RLHFArguments if gkd else SftArguments)(**arguments))
    pipeline.main()
    own = {"teacher": "adapter disabled" if pipeline.args._teacher_use_disable_adapter else "a copy"} if gkd else {}
    return watch.result(size.warmup) | own | _flops(made, shape, gkd=gkd)


def _flops(made: dict[str, Any], shape: str, *, gkd: bool) -> dict[str, float]:
    anatomy = read_anatomy(Path(made["checkpoint"]), LANGUAGE_LORA, {"lora_rank": 32})
    row = made["shapes"][shape]
    patches = (row["side_px"] // anatomy.vision.patch_px) ** 2
    batch = Batch(rows=BATCH, tokens=row["tokens"], labels=row["labels"], patches=patches)
    return {"flops": step_flops(anatomy, batch, teacher=gkd)}


class Silent:
    """A reporter whose words end up in the cell's log."""

    def stage(self, text: str) -> None:
        """See `vltool.run.reporter.Reporter`."""
        print(text, flush=True)

    def towers(self, rows: Any) -> None:
        """See `vltool.run.reporter.Reporter`."""

    def carried(self, checkpoint: str, rows: Any) -> None:
        """See `vltool.run.reporter.Reporter`."""

    def progress(self, what: str, done: int, total: int) -> None:
        """See `vltool.run.reporter.Reporter`."""

    def row(self, row: dict[str, int | float]) -> None:
        """See `vltool.run.reporter.Reporter`."""
        print(row, flush=True)

    def warn(self, problem: Any) -> None:
        """See `vltool.run.reporter.Reporter`."""
        print(problem, flush=True)


# --- correctness ------------------------------------------------------------------------------------------

PERTURBATION = 0.02
"""Standard deviation that LoRA's second factors are given: at their zero, student and teacher are equal and the
divergence has no gradient to compare."""


def compare(trainer: Any, shape: dict[str, Any], *, gkd: bool) -> dict[str, float]:
    """Loss and LoRA gradient of one batch, as the trainer makes them and as plain code does with the same model.

    Relative differences: of what the run trains on, and under GKD of the divergence alone, which cross entropy
    hides. The gradients differ by what rounding does in the layers too, in bf16 most of all.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=PERTURBATION)
    rows = [trainer.train_dataset[row] for row in range(BATCH)]
    require_shape(rows, shape)
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    sft_alpha = GKD["sft_alpha"] if gkd else 1.0
    found = {}
    for part, ce_weight in (
        {"": sft_alpha, "jsd_": 0.0}.items() if gkd and trainer.kd_weight else {"": sft_alpha}.items()
    ):
        plain, plain_gradient = _plainly(trainer, model, batch, ce_weight=ce_weight, kd_weight=trainer.kd_weight)
        with loss_arguments(ce_weight=ce_weight):
            fast, gradient = _by_the_trainer(trainer, model, batch)
        found |= {
            f"{part}loss_error": abs(fast - plain) / abs(plain),
            f"{part}gradient_error": relative(gradient, plain_gradient),
        }
        del gradient, plain_gradient
    return found


def require_shape(rows: list[dict[str, Any]], shape: dict[str, Any]) -> None:
    """Raise RuntimeError where encoded rows have not the tokens that FLOPs are counted of."""
    found = {(len(row["input_ids"]), sum(label != IGNORE for label in row["labels"])) for row in rows}
    if found != {(shape["tokens"], shape["labels"])}:
        raise RuntimeError(f"rows of (tokens, labels) {sorted(found)}, not {shape['tokens'], shape['labels']}")


def _label_tokens(batch: dict[str, Any]) -> int:
    return int((batch["labels"][:, 1:] != IGNORE).sum())


def _by_the_trainer(trainer: Any, model: Any, batch: dict[str, Any]) -> tuple[float, Tensor]:
    model.train()
    model.zero_grad(set_to_none=True)
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model_wrapped, dict(batch), num_items_in_batch=_label_tokens(batch))
    loss.backward()
    return float(loss.detach()), _gradient(model)


def _plainly(
    trainer: Any, model: Any, batch: dict[str, Any], *, ce_weight: float, kd_weight: float
) -> tuple[float, Tensor]:
    """The model's own forward pass, transformers' and peft's alone, and `plain_loss`."""
    inner = model.get_base_model().model
    accepted = inspect.signature(type(inner).forward).parameters
    inputs = {name: value for name, value in batch.items() if name in accepted and name != "labels"}
    head_VH = model.get_base_model().get_output_embeddings().weight
    taught_NH = None
    if kd_weight:
        model.eval()
        with torch.no_grad(), model.disable_adapter(), trainer.accelerator.autocast():
            taught_NH = inner(**inputs, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    model.train()
    model.zero_grad(set_to_none=True)
    with trainer.accelerator.autocast():
        hidden_NH = inner(**inputs, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    plain = plain_loss(
        hidden_NH,
        batch["labels"][:, 1:].flatten(),
        head_VH,
        taught_NH,
        beta=GKD["beta"],
        ce_weight=ce_weight,
        kd_weight=kd_weight,
    )
    hidden_NH.backward(plain.hidden_gradient.to(hidden_NH.dtype))
    return plain.loss, _gradient(model)


def _gradient(model: Any) -> Tensor:
    """All gradients as one fp32 vector; those that did not come are zeros."""
    parts = [
        (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).float().flatten()
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    model.zero_grad(set_to_none=True)
    return torch.cat(parts)


# --- arithmetic and the loss alone ------------------------------------------------------------------------


def gemm(size: Size) -> dict[str, Any]:
    """FLOP/s of a large product of square matrices: what this device, at its clocks of now, does at best."""
    device, dtype = _device_and_dtype(size)
    first, second = (torch.randn(size.gemm, size.gemm, device=device, dtype=dtype) for _ in range(2))
    ms = timed(lambda: first @ second, warmup=10, repeats=30)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"flops_a_second": 2 * size.gemm**3 / (ms / 1e3), "device": name, "torch": torch.__version__}


def loss_alone(path: str, size: Size) -> dict[str, Any]:
    """`distillation_loss` without a model: time and memory of CE + JSD forward and backward, and errors of both."""
    device, dtype = _device_and_dtype(size)
    positions, vocabulary, hidden = size.loss
    torch.manual_seed(0)
    # Logits of a standard deviation of 3: sharp enough for large and tiny probabilities.
    student = torch.randn(positions, hidden, device=device).mul_(3).to(dtype).requires_grad_()
    teacher = (student.detach().float() + torch.randn(positions, hidden, device=device)).to(dtype)
    head = torch.randn(vocabulary, hidden, device=device).mul_(hidden**-0.5).to(dtype)
    labels = torch.randint(vocabulary, (positions,), device=device)

    def step(ce_weight: float = GKD["sft_alpha"]) -> float:
        student.grad = None
        out = losses.distillation_loss(
            student, labels, head, teacher_hidden_NH=teacher, teacher_head_VH=head, beta=GKD["beta"],
            ce_weight=ce_weight, chunk_tokens=512, backend=LOSS_PATHS[path],
        )  # fmt: skip
        out.loss.backward()
        return float(out.loss.detach())

    found: dict[str, Any] = {"peak_gib": None}
    found["ms"] = timed(step, warmup=3, repeats=10)
    if torch.cuda.is_available():
        student.grad = None
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        found["peak_gib"] = (torch.cuda.max_memory_allocated() - before) / GIB
    for part, ce_weight in (("", GKD["sft_alpha"]), ("jsd_", 0.0)):
        value = step(ce_weight)
        plain = plain_loss(student, labels, head, teacher, beta=GKD["beta"], ce_weight=ce_weight)
        found[f"{part}loss_error"] = abs(value - plain.loss) / abs(plain.loss)
        found[f"{part}gradient_error"] = relative(student.grad, plain.hidden_gradient)
    return found


def _device_and_dtype(size: Size) -> tuple[str, torch.dtype]:
    return "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, size.dtype)
