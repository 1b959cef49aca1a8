"""plan.json -> training. Reads no YAML; the same numbers on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from vltool.checkpoint.census import last_complete
from vltool.data.samples import Samples
from vltool.errors import InvalidInput, MissingOnHost, Problem, RunFailed, VltoolError
from vltool.run.data import training_samples, validation_samples
from vltool.run.deepspeed import zero_stage
from vltool.run.evidence import Evidence, to_json, write_atomically
from vltool.run.folder import PLAN_FILE_NAME
from vltool.run.guard import kd_tolerance, why_no_equal
from vltool.run.manifest import make_manifest
from vltool.run.plan import RunPlan
from vltool.run.reporter import Reporter
from vltool.run.teacher_cache import begin_cache, check_cache
from vltool.training import swift_bridge
from vltool.training.agreement import agree
from vltool.training.ask import AskTeacher, make_cache
from vltool.training.callbacks import Finite, Saving, StepAudit, Stop, Telemetry
from vltool.training.chain import carry
from vltool.training.collate import EncodedRecords
from vltool.training.freeze import audit_before, fingerprints
from vltool.training.logs import logs_into
from vltool.training.losses import why_eager
from vltool.training.make_teacher import make_teacher
from vltool.training.memory import watching_memory
from vltool.training.probe import Probe
from vltool.training.quantized import settings_of
from vltool.training.ranks import Ranks, meet
from vltool.training.teacher import HeadTap
from vltool.training.teacher_cache import Split
from vltool.training.trainer import CaptionTrainer
from vltool.training.vision_kd import FeatureTap


def run(plan_json: bytes, reporter: Reporter, *, resolved_yaml: str) -> dict[str, Any]:
    """Train as the plan says, alone or as one of the processes that torchrun started.

    Returns `{"step", "max_steps", "last_checkpoint", "signal"}`; `signal` is the one that ended the run
    early, or None. Raises InvalidInput for arguments that ms-swift refuses or processes that do not see the
    same (then nothing was written), BadContent for a record that cannot be encoded, RunFailed for an audit
    that failed, OutOfMemory where a GPU's did not suffice.
    """
    plan = RunPlan.from_json(plan_json)
    ranks = meet(deepspeed="deepspeed" in plan.arguments)
    plan = agree(plan, ranks)
    run_dir = Path(plan.run_dir)
    existed = run_dir.exists()
    train_set = training_samples(plan.data, plan.arguments, processes=plan.launch.processes)
    _require_a_step(plan, len(train_set))
    if ranks.is_first:
        for note in train_set.notes:
            reporter.warn(note)
    problems: list[Problem] = []
    check_cache(plan, problems, None, audited=True)
    if problems:
        raise InvalidInput(problems)
    reporter.stage("loading the model")
    with logs_into(run_dir if ranks.is_first else None, show=plan.debug) as warnings_file:
        try:
            with watching_memory(lambda: "while the model was loaded"):
                prepared = swift_bridge.build(plan, records=len(train_set))
        except (InvalidInput, MissingOnHost):
            # ms-swift makes the folder while it looks at its arguments.
            if ranks.is_first and not existed and run_dir.is_dir() and not any(run_dir.iterdir()):
                run_dir.rmdir()
            raise
        warnings_file.told(plan.warnings)
        warnings_file.begin()
        evidence = Evidence(quantization=settings_of(prepared.model))
        if ranks.is_first:
            write_atomically(run_dir / PLAN_FILE_NAME, plan.to_json())
            write_atomically(run_dir / "resolved.yaml", resolved_yaml.encode())
            write_atomically(run_dir / "manifest.json", to_json(make_manifest(plan)))
            begin_cache(plan)
        _require_shared(run_dir, ranks)
        try:
            with watching_memory(lambda: "before or after training"):
                outcome = _Run(plan, prepared, train_set, evidence, ranks, reporter).train()
        except VltoolError as error:
            evidence.failure = str(error).splitlines()[0]
            raise
        finally:
            if ranks.is_first:
                evidence.write(run_dir)
    ranks.end()
    return outcome


def _require_a_step(plan: RunPlan, records: int) -> None:
    """Raise InvalidInput when every record would be dropped."""
    together = plan.arguments.get("per_device_train_batch_size", 1) * plan.launch.processes
    if plan.arguments.get("dataloader_drop_last") and records < together:
        at = plan.origins.get("dataloader_drop_last")
        raise InvalidInput(
            f"{at}: {records} records make no batch of {together} "
            f"({together // plan.launch.processes} on each of {plan.launch.processes} processes), and would be dropped",
            "write dataloader_drop_last: false, or a smaller batch",
        )


def _require_shared(run_dir: Path, ranks: Ranks) -> None:
    """Raise RunFailed when a process does not see the first one's run folder, in which checkpoints come together."""
    sign = run_dir / ranks.gather(f".seen-{uuid4().hex}")[0]
    if ranks.is_first:
        sign.touch()
    ranks.wait()
    blind = [str(rank) for rank, sees in enumerate(ranks.gather(sign.is_file())) if not sees]
    if ranks.is_first:
        sign.unlink()
    if blind:
        raise RunFailed(
            f"processes {', '.join(blind)} do not see the run folder {run_dir} of process 0",
            "name a folder that all nodes share in training.output_dir",
        )


class _Run:
    """One process's part of a run."""

    def __init__(
        self,
        plan: RunPlan,
        prepared: swift_bridge.Prepared,
        train_set: Samples,
        evidence: Evidence,
        ranks: Ranks,
        reporter: Reporter,
    ) -> None:
        self._plan = plan
        self._run_dir = Path(plan.run_dir)
        self._prepared = prepared
        self._train_set = train_set
        self._evidence = evidence
        self._ranks = ranks
        self._reporter = reporter
        self._zero_stage = zero_stage(plan.arguments.get("deepspeed"))

    def train(self) -> dict[str, Any]:
        """Audit, train, and say what it came to."""
        self._audit()
        trainer, records = self._trainer()
        for callback in swift_bridge.MS_SWIFT_CALLBACKS:
            trainer.remove_callback(callback)
        kd_limit = None if why_no_equal(self._plan) else kd_tolerance(self._plan)
        step_audit = StepAudit(trainer, self._evidence, self._keep, self._ranks, self._reporter, kd_limit=kd_limit)
        trainer.add_callback(step_audit)
        if records[0].cache is not None:
            asks = AskTeacher(trainer, records, self._ranks, self._reporter, in_step=self._zero_stage == 3)
            trainer.add_callback(asks)
        probe = Probe(trainer, records[0], self._evidence, self._keep) if self._plan.probe else None
        if probe is not None:
            trainer.add_callback(probe)
        telemetry = self._telemetry()
        if telemetry is not None:
            trainer.add_callback(telemetry)
        stop = Stop(self._ranks)
        # The stop comes last: it saves whatever the others say.
        for callback in (Finite(trainer.window), Saving(self._plan.saving), stop):
            trainer.add_callback(callback)
        self._say_what_computes_the_loss(trainer)
        try:
            with watching_memory(lambda: f"in step {trainer.state.global_step + 1}"), stop.listening():
                trainer.train(resume_from_checkpoint=self._plan.resume)
        finally:
            for part in records:
                part.close()
            if telemetry is not None:
                telemetry.close()
            checkpoint = last_complete(self._run_dir)
            self._evidence.last_checkpoint = None if checkpoint is None else str(checkpoint)
        if probe is not None:
            probe.measure_after()
            self._compare_copies(trainer)
            step_audit.look_at_frozen(trainer.state.global_step)
            distillation = self._plan.distillation
            # In shards, gradients are no one process's to look at.
            if distillation is not None and distillation.visual is not None and self._zero_stage < 3:
                probe.measure_vision()
            probe.save(self._run_dir, writes=self._ranks.is_first)
        self._tap.close()
        self._features.close()
        self._evidence.finished = stop.signal is None
        return {
            "step": trainer.state.global_step,
            "max_steps": trainer.state.max_steps,
            "last_checkpoint": self._evidence.last_checkpoint,
            "signal": stop.signal,
        }

    def _say_what_computes_the_loss(self, trainer: CaptionTrainer) -> None:
        why = why_eager(trainer.accelerator.device, self._tap.weight().dtype)
        self._evidence.loss_backend = "triton" if why is None else f"eager: {why}"
        self._keep()
        self._reporter.stage(f"training, the loss in {'Triton kernels' if why is None else f'plain torch ({why})'}")

    def _compare_copies(self, trainer: CaptionTrainer) -> None:
        """Look whether the trained weights are the same on all processes, where each holds all of them."""
        if self._ranks.count == 1 or self._zero_stage == 3:
            return
        first, *others = self._ranks.gather(fingerprints(trainer.model, trainable=True))
        self._evidence.ranks_differ = sorted(
            name for name, value in first.items() if any(theirs[name] != value for theirs in others)
        )

    def _keep(self) -> None:
        if self._ranks.is_first:
            self._evidence.write(self._run_dir)

    def _audit(self) -> None:
        """Carry an earlier stage over, and hold what trains against the recipe."""
        model, tuner, evidence = self._prepared.model, self._plan.tuner, self._evidence
        if tuner.carried is not None:
            evidence.carried = carry(model, tuner)
            self._reporter.carried(tuner.carried.checkpoint, evidence.carried)
        audit = audit_before(model, tuner)
        evidence.towers, evidence.tower_problems = audit.rows, audit.problems
        self._keep()
        self._reporter.towers(audit.rows)
        if audit.problems:
            raise RunFailed("audit before step 1: " + "; ".join(audit.problems), "the table above shows every tower")

    def _trainer(self) -> tuple[CaptionTrainer, list[EncodedRecords]]:
        """The trainer and the records that it trains and, if there are any, evaluates on."""
        plan, prepared = self._plan, self._prepared
        encode, blank = swift_bridge.encoder(prepared), swift_bridge.blank_image(prepared)
        sets: list[tuple[Split, Samples]] = [("train", self._train_set)]
        if (val_set := validation_samples(plan.data)) is not None:
            sets.append(("val", val_set))
        records = [
            EncodedRecords(
                samples,
                encode,
                blank,
                make_cache(plan, split, samples.records),
                skips_bad=plan.data.on_bad_record == "skip",
            )
            for split, samples in sets
        ]
        if plan.dump_conversation is not None and self._ranks.is_first:
            swift_bridge.dump_conversation(prepared, records[0][0], Path(plan.dump_conversation))
        taps = self._tap, self._features = HeadTap(prepared.model), FeatureTap(prepared.model)
        trainer = CaptionTrainer(
            model=prepared.model,
            args=prepared.training_arguments,
            template=prepared.template,
            train_dataset=records[0],
            eval_dataset=records[1] if len(records) > 1 else None,
            distillation=plan.distillation,
            teacher=make_teacher(plan, prepared, taps, records, self._ranks, self._reporter),
            tap=self._tap,
            features=self._features,
            ranks=self._ranks,
            blank=blank,
        )
        return trainer, records

    def _telemetry(self) -> Telemetry | None:
        """What writes the rows, on the process that does."""
        if not self._ranks.is_first:
            return None
        resumed_step = 0 if self._plan.resume is None else int(Path(self._plan.resume).name.rpartition("-")[2])
        return Telemetry(self._run_dir, self._reporter, resumed_step=resumed_step)
