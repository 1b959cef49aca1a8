"""What the distillation benchmark measured, as tables of at most 120 columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distillation_levers import LEVERS
from distillation_setup import BATCH, SIZES

from vltool.audit.model_flops import PEAK_FLOPS, loss_flops

Cells = dict[str, dict[str, Any]]
WIDTH = 120


def print_tables(measured: Cells, *, size: str, centre: str, seconds: float) -> None:
    """All tables of which some cell was measured."""
    gemm = measured.get("gemm", {})
    rate = gemm.get("flops_a_second")
    on = f"{gemm.get('device', '?')}, torch {gemm.get('torch', '?')}"
    print(f"distillation benchmark, size {size}: {on}, {seconds:.0f} s")
    if rate:
        print(f"GEMM rate of this run {rate / 1e12:.1f} TFLOP/s; MFU is of {PEAK_FLOPS / 1e12:.0f} TFLOP/s")
    for name, shape in SIZES[size].shapes.items():
        print(
            f"{name:5} {BATCH} rows of {shape.tokens:,} tokens: {shape.labels:,} label tokens "
            f"and one image of {shape.image_tokens:,} tokens ({shape.side_px} px)"
        )
    if error := measured.get("prepare", {}).get("error"):
        print(f"\nnothing was measured: {error}")
        return
    mains = [name for name in measured if name.startswith(("swift-", "vltool-"))]
    if mains:
        print(
            "\nEnd to end, a step. Errors are relative, against the plain path with the same model in the same process."
        )
        print(f"{'trainer, shape, checkpointing':30}{_STEP_HEADS}")
        for name in sorted(mains, key=_by_shape):
            print(_step(_said(name), measured[name], rate))
        for name in mains:
            if "teacher" in measured[name]:
                print(f"the teacher of {name}: {measured[name]['teacher']}")
    levers = [name for name in measured if name.startswith("lever-")]
    if levers:
        print(f"\nLever by lever around {centre}")
        print(f"{'lever':30}{_STEP_HEADS}{'× centre':>9}")
        base = measured.get(centre, {}).get("step_ms")
        for name in [centre] * (centre in measured) + levers:
            row = measured[name]
            ratio = f"{row['step_ms'] / base:9.2f}" if base and "step_ms" in row else ""
            print(_step(name.removeprefix("lever-"), row, rate) + ratio)
        for name in levers:
            print(f"{name.removeprefix('lever-')}: {LEVERS[name.removeprefix('lever-')].says}")
    losses = [name for name in measured if name.startswith("loss-")]
    if losses:
        _print_losses(measured, losses, size, rate)
    for name, row in measured.items():
        if "not_compared" in row:
            print(f"{name} was not compared: {row['not_compared']}"[:WIDTH])
    _print_budgets(measured, size, rate)


# --- steps ------------------------------------------------------------------------------------------------

_STEP_HEADS = (
    f"{'step ms':>9}{'peak GiB':>9}{'reserved':>9}{'MFU %':>7}{'÷ GEMM':>7}"
    f"{'loss':>9}{'gradient':>9}{'JSD':>9}{'its grad.':>10}"
)


def _said(name: str) -> str:
    who, what, shape, checkpointing = name.split("-")
    return f"{'ms-swift' if who == 'swift' else who:9}{what.upper():4} {shape:6}{checkpointing}"


def _by_shape(name: str) -> tuple[str, ...]:
    who, what, shape, checkpointing = name.split("-")
    return shape, "01"[checkpointing == "off"], "01"[what == "gkd"], who


def _step(says: str, row: dict[str, Any], rate: float | None) -> str:
    start = f"{says:30}"
    if "error" in row:
        return f"{start}  {row['error']}"[:WIDTH]
    speed = row["flops"] / (row["step_ms"] / 1e3)
    share = f"{100 * speed / rate:6.1f}%" if rate else " " * 7
    return (
        f"{start}{row['step_ms']:9.1f}{_gib(row.get('peak_gib'))}{_gib(row.get('reserved_gib'))}"
        f"{100 * speed / PEAK_FLOPS:7.1f}{share}{_error(row, 'loss_error')}{_error(row, 'gradient_error')}"
        f"{_error(row, 'jsd_loss_error')} {_error(row, 'jsd_gradient_error')}"
    )


def _gib(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.2f}"


def _error(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:9.1e}" if name in row else f"{'':9}"


# --- the loss alone ---------------------------------------------------------------------------------------


def _print_losses(measured: Cells, names: list[str], size: str, rate: float | None) -> None:
    positions, vocabulary, hidden = SIZES[size].loss
    print(
        f"\nThe loss alone (CE + JSD, forward and backward), {positions:,} labels × {vocabulary:,} × {hidden:,}; "
        "errors against fp32"
    )
    print(
        f"{'path':30}{'ms':>9}{'peak GiB':>9}{'roofline':>9}{'× it':>7}{'':7}"
        f"{'loss':>9}{'gradient':>9}{'JSD':>9}{'its grad.':>10}"
    )
    for name in names:
        row = measured[name]
        if "error" in row:
            print(f"{name.removeprefix('loss-'):30}  {row['error']}"[:WIDTH])
            continue
        floor = _roofline_ms(size, rate)
        shown = " " * 16 if floor is None else f"{floor:9.1f}{row['ms'] / floor:7.2f}"
        print(
            f"{name.removeprefix('loss-'):30}{row['ms']:9.1f}{_gib(row['peak_gib'])}{shown}{'':7}"
            f"{_error(row, 'loss_error')}{_error(row, 'gradient_error')}{_error(row, 'jsd_loss_error')} "
            f"{_error(row, 'jsd_gradient_error')}"
        )


def _roofline_ms(size: str, rate: float | None) -> float | None:
    return None if not rate else 1e3 * loss_flops(*SIZES[size].loss) / rate


# --- budgets ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """A value that must stay at or below one bound, and aims at another."""

    says: str
    where: str
    value: float | None
    """None where a cell that it needs was not measured."""
    must: float
    aim: float

    @property
    def verdict(self) -> str:
        """In words."""
        if self.value is None:
            return "not measured"
        return "aim kept" if self.value <= self.aim else "must kept" if self.value <= self.must else "MISSED"


def _print_budgets(measured: Cells, size: str, rate: float | None) -> None:
    print(f"\n{'budget':58}{'where':12}{'value':>9}{'must ≤':>9}{'aim ≤':>9}  verdict")
    for budget in _budgets(measured, size, rate):
        value = f"{'-':>9}" if budget.value is None else f"{budget.value:9.2f}"
        verdict = budget.verdict if size == "4b" else ""
        row = f"{budget.says:58}{budget.where:12}{value}{budget.must:9.2f}{budget.aim:9.2f}  {verdict}"
        print(row.rstrip())
    if size != "4b":
        print("(no verdict: budgets are of size 4b)")


def _budgets(measured: Cells, size: str, rate: float | None) -> Iterator[Budget]:
    def ratio(first: str, second: str, key: str) -> float | None:
        above, below = (measured.get(name, {}).get(key) for name in (first, second))
        return above / below if above and below else None

    places = [f"{shape}-{checkpointing}" for shape in ("image", "text") for checkpointing in ("on", "off")]
    for at in places:
        value = ratio(f"vltool-gkd-{at}", f"vltool-sft-{at}", "step_ms")
        yield Budget("KD ÷ SFT inside vltool, time", at, value, 1.35, 1.25)
    value = ratio("lever-top64", "vltool-sft-image-on", "step_ms")
    yield Budget("offline teacher ÷ SFT inside vltool, time", "image-on", value, 1.05, 1.00)
    for at in places:
        value = ratio(f"vltool-gkd-{at}", f"swift-gkd-{at}", "step_ms")
        yield Budget("vltool GKD ÷ ms-swift GKD, time end to end", at, value, 0.80, 0.35)
    for at in ("image-on", "text-on"):
        value = ratio(f"vltool-gkd-{at}", f"swift-sft-{at}", "peak_gib")
        yield Budget("vltool GKD ÷ ms-swift SFT, peak memory", at, value, 1.00, 0.85)
    loss, floor = measured.get("loss-default", {}), _roofline_ms(size, rate)
    over = loss["ms"] / floor if "ms" in loss and floor else None
    yield Budget("the loss alone ÷ its roofline", "loss", over, 1.8, 1.4)
    yield Budget("the loss alone, GiB above its inputs", "loss", loss.get("peak_gib"), 1.6, 0.7)
