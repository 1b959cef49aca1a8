"""Trainer events -> telemetry, audits and the operator's stop. Prints nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from vltool.checkpoint.architecture import Tower, tower_of
from vltool.errors import Problem, RunFailed
from vltool.run import telemetry
from vltool.run.evidence import Evidence, TowerRow
from vltool.run.plan import SavePlan
from vltool.run.reporter import Reporter
from vltool.training.freeze import GradientAudit, fingerprints
from vltool.training.ranks import Ranks
from vltool.training.trainer import CaptionTrainer
from vltool.training.window import GRAD_NORM, Split, Window


class Telemetry(TrainerCallback):
    """Writes each row to logging.jsonl and TensorBoard, the same names and values, and reports it."""

    def __init__(self, run_dir: Path, reporter: Reporter, *, resumed_step: int) -> None:
        self._run_dir = run_dir
        self._reporter = reporter
        self._evaluated = 0
        # Rows beyond the checkpoint, or of a run that died before its first one, are written again.
        telemetry.forget_after(run_dir, resumed_step)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resumed_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report progress."""
        self._reporter.progress("training", state.global_step, state.max_steps)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count evaluation batches from the start again."""
        self._evaluated = 0

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any, **kwargs: Any) -> None:
        """Report progress."""
        self._evaluated += 1
        self._reporter.progress("evaluating", self._evaluated, len(eval_dataloader))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one row."""
        logs = dict(logs or {})
        if "train_runtime" in logs:
            # The parent's summary at the end of training is no metric of a step.
            return
        row = telemetry.make_row(state.global_step, logs)
        telemetry.append_row(self._run_dir, row)
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, state.global_step)
        self._board.flush()
        self._reporter.row(row)

    def close(self) -> None:
        """Flush and close TensorBoard's file."""
        self._board.close()


class Finite(TrainerCallback):
    """Ends the run, on all processes alike, when a loss or its gradient is not finite."""

    _NAMES: ClassVar[dict[Split, tuple[str, ...]]] = {"train": ("train/loss", GRAD_NORM), "eval": ("eval/loss",)}

    def __init__(self, window: Window) -> None:
        self._window = window

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Look at a row, which every process makes of the same sums."""
        row = telemetry.make_row(state.global_step, logs or {})
        for split, names in self._NAMES.items():
            if names[0] in row:
                self._window.require_finite(split, {name: row.get(name, 0.0) for name in names}, state.global_step)
                self._window.forget(split)


class StepAudit(TrainerCallback):
    """Audit after step 1: gradients where something should train, not a bit changed where nothing should."""

    def __init__(
        self,
        trainer: CaptionTrainer,
        evidence: Evidence,
        keep: Callable[[], None],
        ranks: Ranks,
        reporter: Reporter,
        *,
        kd_limit: float | None,
    ) -> None:
        """keep: writes the evidence into the run folder. kd_limit: the largest divergence a token, unweighted, that
        the first step may show; None where student and teacher may differ."""
        self._kd_limit = kd_limit
        self._trainer = trainer
        self._evidence = evidence
        self._keep = keep
        self._ranks = ranks
        self._reporter = reporter
        self._before: dict[str, int] = {}
        self._gradients = GradientAudit(trainer.model, ranks)
        self._looked_at_frozen = False
        self._steps_with_gradients = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the frozen parameters' fingerprints: from here on nothing shards or casts them any more."""
        self._before = fingerprints(self._trainer.model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradients until each part has shown its own. Raises RunFailed with the table."""
        self._trainer.note_rates()
        if not self._trainer.can_show_gradients:
            self._gradients.forget()
            return
        self._steps_with_gradients += 1
        if not self._gradients.wants(saw_images=self._trainer.saw_images):
            return
        # ms-swift drops all gradients when their norm is NaN: without this, the audit would blame the model.
        means = self._trainer.window_means()
        self._trainer.window.require_finite(
            "train", {f"train/{name}": value for name, value in means.items()}, state.global_step + 1
        )
        if state.global_step == 0:
            self._compare_with_teacher(means.get("llm_kd_loss"))
        rate = max((group["lr"] for group in self._trainer.optimizer.param_groups), default=0.0)
        broken = self._gradients.observe(saw_images=self._trainer.saw_images, learning_rate=float(rate))
        shown = self._gradients.per_tower()
        for row in self._rows():
            row.got_gradient = shown.get(row.tower)
        if broken or self._gradients.done:
            self._evidence.gradient_problems = [f"{tower}: {what}" for tower, what in broken]
            self._keep()
        if broken:
            infinite = self._trainer.window.gradient_problem(state.global_step + 1)
            self._stop(f"audit of the gradients at step {state.global_step + 1}", broken, infinite)

    def _compare_with_teacher(self, weighted: float | None) -> None:
        if self._kd_limit is None or weighted is None:
            return
        value = weighted / self._trainer.kd_weight
        if value > self._kd_limit:
            raise RunFailed(
                f"the divergence before step 1 is {value:.2g} a token (at most {self._kd_limit:g}), though the student "
                "is its teacher with an adapter that changes nothing yet",
                "teacher and student differ: look at tokenizer, template and checkpoint of both",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the first step: frozen parameters must be bit for bit what they were."""
        if not self._looked_at_frozen:
            self._looked_at_frozen = True
            self.look_at_frozen(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say which towers never had anything to train on, and why."""
        self._gradients.close()
        if self._evidence.gradient_problems is None and state.global_step:
            self._evidence.gradient_problems = []
            self._keep()
        if idle := self._gradients.without_input():
            if self._steps_with_gradients:
                why, do = "no record with an image came", "look at custom.train_jsonl, or freeze these towers"
            else:
                why = "every step was on the student's own text, which its teacher's equal learns nothing from"
                do = "train for more steps, or lower rlhf.lmbda"
            self._reporter.warn(Problem(f"{', '.join(idle)}: should train, but {why}", do))

    def look_at_frozen(self, step: int) -> None:
        """Compare frozen parameters with those before step 1. Raises RunFailed where one changed."""
        now = fingerprints(self._trainer.model)
        mine = {name for name, value in self._before.items() if now.get(name) != value}
        changed = sorted(set().union(*self._ranks.gather(mine)))
        self._evidence.frozen_tensors = len(self._before)
        self._evidence.frozen_changed = changed
        self._keep()
        if changed:
            self._stop(
                f"audit of the frozen parameters at step {step}",
                [(tower_of(name), f"{name} is frozen, but changed") for name in changed],
            )

    def _rows(self) -> list[TowerRow]:
        return self._evidence.towers or []

    def _stop(self, audit: str, broken: list[tuple[Tower, str]], more: Problem | None = None) -> NoReturn:
        """Show the table with what is wrong in it, and end the run; `more` is said of it too."""
        first = dict(reversed(broken))
        for row in self._rows():
            row.problem = first.get(row.tower)
        self._reporter.towers(self._rows())
        found = Problem(f"{audit}: " + "; ".join(f"{tower}: {what}" for tower, what in first.items()))
        raise RunFailed([found] if more is None else [found, more])


class Saving(TrainerCallback):
    """No checkpoint before a step, and one at the end or none; the end is evaluated and saved once."""

    def __init__(self, plan: SavePlan) -> None:
        self._plan = plan

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Overrule ms-swift, which saves and evaluates at its steps and always at the end of them."""
        if state.global_step < state.max_steps:
            self._delay(state, control)
            return
        if args.save_strategy == "steps":
            control.should_save = self._plan.last or state.global_step % state.save_steps == 0
        # By epochs, the end of the last one comes right after this.
        elif args.save_strategy == "epoch":
            control.should_save = False
        if args.eval_strategy == "epoch":
            control.should_evaluate = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The same where epochs are saved: the last one is the end."""
        if state.global_step < state.max_steps:
            self._delay(state, control)
        elif args.save_strategy == "epoch":
            control.should_save = self._plan.last

    def _delay(self, state: Any, control: Any) -> None:
        if state.global_step < self._plan.delay_steps:
            control.should_save = False


class Stop(TrainerCallback):
    """Ctrl-C and SIGTERM end the run after the current step, with a checkpoint; a second Ctrl-C at once."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._received = 0
        self.signal: int | None = None
        """The one that ended the run; the same on every process, whichever of them it reached."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, if a signal came to any process."""
        self.signal = self._ranks.most(self._received) or None
        if self.signal is not None:
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True

    def _receive(self, number: int, _: Any) -> None:
        # A scheduler's SIGTERM comes several times: to the process, by whoever launched it, and again.
        if self._received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or number

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals inside; former handlers are put back."""
        former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
