"""Judges a run folder: what a run proved, what it did not, and what was not reached. Trains nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from vltool.checkpoint.census import Census, take_census
from vltool.errors import BadContent, InvalidInput, RunFailed
from vltool.recipe.distillation_rules import BEFORE
from vltool.run import telemetry
from vltool.run.deepspeed import zero_stage
from vltool.run.evidence import Evidence
from vltool.run.guard import in_half_precision, kd_tolerance, why_no_equal
from vltool.run.plan import RunPlan

Status = Literal["pass", "fail", "not reached", "not asked"]

LOGITS_TOLERANCE = 1e-5
"""Of the largest logit: what a reload in fp32 may differ by."""
LOGITS_TOLERANCE_HALF = 2e-2
"""The same where weights or arithmetic have 8 or 11 bits."""
IDENTITY_TOLERANCE = 1e-6


class Verdict(Struct, frozen=True, kw_only=True):
    """One row of the table: what was to be proved, whether it was, and by what."""

    id: str
    proves: str
    status: Status
    evidence: str


class Judge:
    """Looks at one run folder.

    reload: loads a checkpoint in a new process and compares logits (`vltool.run.launch.reload`).
    """

    def __init__(self, plan: RunPlan, reload: Callable[[Path, Path], dict[str, Any]]) -> None:
        self._plan = plan
        self._run_dir = Path(plan.run_dir)
        self._reload = reload
        self._seen = Evidence.read(self._run_dir)
        self._half = in_half_precision(plan)

    def verdicts(self) -> list[Verdict]:
        """All rows, in the order in which a run comes to them."""
        rows = [
            self._row("towers", "the towers train that the recipe names, no other", self._towers),
            self._row("teacher", "the teacher is the student before training", self._teacher),
            self._row("gradients", "every part that trains gets a gradient", self._gradients),
            self._row("vision", "vision-feature distillation reaches what trains", self._vision),
            self._row("frozen", "what is frozen keeps every bit", self._frozen),
            self._row("processes", "all processes hold the same weights", self._processes),
            self._row("metrics", "every metric is there, once, finite, and adds up", self._metrics),
            self._row("learning", "captions become likelier", self._learning),
        ]
        census, row = self._checkpoints()
        rows.append(row)
        rows.append(self._row("reload", "a new process gives the same logits", lambda: self._reloads(census)))
        return rows

    def _row(self, row: str, proves: str, rule: Callable[[], tuple[Status, str]]) -> Verdict:
        status, evidence = rule()
        return Verdict(id=row, proves=proves, status=status, evidence=evidence)

    def _not_reached(self) -> tuple[Status, str]:
        return "not reached", "the run ended before"

    def _towers(self) -> tuple[Status, str]:
        if self._seen.towers is None:
            return "fail", self._seen.failure or "the run ended before its model was built"
        if self._seen.tower_problems:
            return "fail", "; ".join(self._seen.tower_problems)
        trains = [f"{row.tower} {row.trainable:,}" for row in self._seen.towers if row.trainable]
        return "pass", "trains: " + ", ".join(trains)

    def _teacher(self) -> tuple[Status, str]:
        if (why := why_no_equal(self._plan)) is not None:
            return "not asked", why
        value = self._seen.kd_at_start
        if value is None and self._seen.finished:
            return "fail", "the divergence at step 0 is not finite"
        if value is None:
            return self._not_reached()
        limit = kd_tolerance(self._plan)
        good = value <= limit
        return "pass" if good else "fail", f"divergence at step 0: {value:.2g} a token (at most {limit:g})"

    def _gradients(self) -> tuple[Status, str]:
        problems = self._seen.gradient_problems
        if problems:
            return "fail", "; ".join(problems)
        if self._ended_in_loss():
            return "fail", str(self._seen.failure)
        if problems is None:
            return self._not_reached()
        parts = [row.tower for row in self._seen.towers or [] if row.got_gradient]
        silent = [row.tower for row in self._seen.towers or [] if row.should_train and not row.got_gradient]
        if silent:
            return "fail", f"no gradient seen in: {', '.join(silent)}"
        return "pass", f"finite and non-zero in: {', '.join(parts)}"

    def _vision(self) -> tuple[Status, str]:
        plan = self._plan.distillation
        if plan is None or plan.visual is None:
            return "not asked", "no distillation of vision features"
        if zero_stage(self._plan.arguments.get("deepspeed")) == 3:
            return "not asked", "ZeRO-3 has gradients in shards"
        if self._seen.vision_gradients is None:
            return self._not_reached()
        before = {tower for name, towers in BEFORE.items() if getattr(plan.visual, name) for tower in towers}
        asked = [row.tower for row in self._seen.towers or [] if row.trainable and row.tower in before]
        silent = [tower for tower in asked if not self._seen.vision_gradients.get(tower)]
        if silent:
            return "fail", f"no gradient of the vision terms in: {', '.join(silent)}"
        return "pass", f"a gradient of the vision terms alone in: {', '.join(asked)}"

    def _ended_in_loss(self) -> bool:
        return "no gradient would reach the student" in (self._seen.failure or "")

    def _frozen(self) -> tuple[Status, str]:
        changed = self._seen.frozen_changed
        if changed:
            return "fail", f"{len(changed)} changed, the first: {changed[0]}"
        if changed is None or not self._seen.finished:
            return self._not_reached()
        return "pass", f"{self._seen.frozen_tensors} tensors compared bit for bit"

    def _processes(self) -> tuple[Status, str]:
        count = self._plan.launch.processes
        if count == 1:
            return "not asked", "one process"
        if not self._seen.finished:
            return self._not_reached()
        if zero_stage(self._plan.arguments.get("deepspeed")) == 3:
            return "not asked", "ZeRO-3 leaves one copy of the weights, in shards"
        differ = self._seen.ranks_differ
        if differ is None:
            return "fail", "they were not compared"
        if differ:
            return "fail", f"{len(differ)} trained tensors differ between them, the first: {differ[0]}"
        return "pass", f"every trained tensor bit for bit, on {count} processes"

    def _metrics(self) -> tuple[Status, str]:
        try:
            rows = list(telemetry.read_rows(self._run_dir))
        except BadContent as error:
            return "fail", str(error)
        if not rows:
            return self._not_reached()
        faults = [fault for row in rows for fault in self._row_faults(row)]
        if faults:
            return "fail", faults[0] + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")
        if not self._seen.finished:
            return self._not_reached()
        if self._plan.arguments.get("eval_strategy") != "no" and not any("eval/loss" in row for row in rows):
            return "fail", "no evaluation was logged"
        names = sorted({name for row in rows for name in row if name.startswith(("train/", "eval/"))})
        return "pass", f"{len(rows)} rows, {len(names)} names"

    def _row_faults(self, row: dict[str, int | float]) -> list[str]:
        step = row.get("step")
        if not isinstance(step, int):
            return [f"a row has no integer step: {step!r}"]
        split = "eval" if any(name.startswith("eval/") for name in row) else "train"
        faults = [
            f"step {step}: {name} has no train/ or eval/ prefix" for name in row if "/" not in name and name != "step"
        ]
        faults += [
            f"step {step}: {name} is prefixed twice"
            for name in row
            if name.startswith(("train/train/", "train/eval", "eval/eval", "eval/train", "train/train_", "eval/eval_"))
        ]
        missing = telemetry.expected_metrics(self._plan, split, row) - row.keys()
        faults += [f"step {step}: {name} is missing" for name in sorted(missing)]
        faults += [f"step {step}: {name} is {value}" for name, value in row.items() if not math.isfinite(value)]
        if not faults and (error := telemetry.identity_error(self._plan, row, split)) > IDENTITY_TOLERANCE:
            faults.append(f"step {step}: {split}/loss differs from the sum of its parts by {error:.2g}")
        return faults

    def _learning(self) -> tuple[Status, str]:
        before, after = self._seen.ce_before, self._seen.ce_after
        distillation = self._plan.distillation
        if distillation is not None and distillation.sampling and "dataset" not in distillation.sampling.first:
            return "not asked", "no step trains on your captions"
        if self._seen.finished and (before is None or after is None):
            # JSON has no NaN: a value that was measured and is not there was not finite.
            return "fail", "the cross entropy of a fixed batch is not finite"
        if before is None or after is None:
            return self._not_reached()
        return "pass" if after < before else "fail", f"cross entropy of a fixed batch {before:.4f} -> {after:.4f}"

    def _checkpoints(self) -> tuple[Census | None, Verdict]:
        proves = "checkpoints hold what was trained, and no more"

        def verdict(status: Status, evidence: str) -> Verdict:
            return Verdict(id="checkpoint", proves=proves, status=status, evidence=evidence)

        if self._seen.last_checkpoint is None:
            if self._seen.finished:
                return None, verdict("fail", "the run finished, but left no complete checkpoint")
            return None, verdict(*self._not_reached())
        wanted = "full" if self._plan.tuner.tuner_type == "full" else "adapter"
        census = None
        found = sorted(self._run_dir.glob("checkpoint-*"))
        for folder in found:
            try:
                census = take_census(folder)
            except (BadContent, InvalidInput) as error:
                return None, verdict("fail", str(error))
            if census.kind != wanted:
                return None, verdict("fail", f"{folder.name} is {census.kind}, not {wanted}: {_size(folder)}")
        census = take_census(Path(self._seen.last_checkpoint))
        if wanted == "adapter" and (
            census.base is None or Path(census.base).resolve() != Path(self._plan.model).resolve()
        ):
            return None, verdict("fail", f"its base is {census.base}, the recipe's is {self._plan.model}")
        trained = {row.tower for row in self._seen.towers or [] if row.trainable}
        trained |= {row.tower for row in self._seen.carried or []}
        held = {tower for tower, count in census.per_tower().items() if count}
        if wanted == "adapter" and held != trained:
            return None, verdict("fail", f"holds {', '.join(sorted(held))}; trained were {', '.join(sorted(trained))}")
        sizes = _size(Path(self._seen.last_checkpoint))
        return census, verdict("pass", f"{len(found)} {wanted} checkpoints, the last of {sizes}")

    def _reloads(self, census: Census | None) -> tuple[Status, str]:
        if census is None or self._seen.ce_after is None:
            return "not reached", "there is no checkpoint to load"
        try:
            result = self._reload(self._run_dir, Path(census.folder))
        except RunFailed as error:
            return "fail", str(error)
        limit = (LOGITS_TOLERANCE_HALF if self._half else LOGITS_TOLERANCE) * max(result["scale"], 1e-9)
        good = result["difference"] <= limit
        return (
            "pass" if good else "fail",
            f"largest difference {result['difference']:.2g} of logits up to {result['scale']:.2g}",
        )


def _size(folder: Path) -> str:
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return f"{total / 1e6:.1f} MB of weights"
