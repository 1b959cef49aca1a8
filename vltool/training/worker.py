"""plan.json -> training. Reads no YAML; the same numbers on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vltool.checkpoint.census import last_complete
from vltool.data.dataset import CaptionDataset
from vltool.errors import InvalidInput, MissingOnHost, RunFailed, VltoolError
from vltool.run.evidence import Evidence, to_json, write_atomically
from vltool.run.folder import PLAN_FILE_NAME
from vltool.run.launch import Reporter
from vltool.run.manifest import make_manifest
from vltool.run.plan import RunPlan
from vltool.training import swift_bridge
from vltool.training.callbacks import Saving, StepAudit, Stop, Telemetry
from vltool.training.chain import carry
from vltool.training.collate import EncodedRecords
from vltool.training.freeze import audit_before, fingerprints
from vltool.training.logs import logs_into
from vltool.training.probe import Probe
from vltool.training.teacher import AdaptersOff, FrozenCopy, HeadTap, Teacher
from vltool.training.trainer import CaptionTrainer


def run(plan_json: bytes, reporter: Reporter, *, resolved_yaml: str) -> dict[str, Any]:
    """Train as the plan says.

    Returns `{"step", "max_steps", "last_checkpoint", "signal"}`; `signal` is the one that ended the run
    early, or None. Raises InvalidInput for arguments that ms-swift refuses (then nothing was written),
    BadContent for a record that cannot be encoded, RunFailed for an audit that failed.
    """
    plan = RunPlan.from_json(plan_json)
    run_dir = Path(plan.run_dir)
    existed = run_dir.exists()
    train_set = CaptionDataset(
        Path(plan.data.train_jsonl), **plan.data.reading(validation=False), skip=plan.data.skip_train
    )
    reporter.stage("loading the model")
    with logs_into(run_dir, show=plan.debug) as warnings_file:
        try:
            prepared = swift_bridge.build(plan, records=len(train_set))
        except (InvalidInput, MissingOnHost):
            # ms-swift makes the folder while it looks at its arguments.
            if not existed and run_dir.is_dir() and not any(run_dir.iterdir()):
                run_dir.rmdir()
            raise
        warnings_file.begin()
        write_atomically(run_dir / PLAN_FILE_NAME, plan_json)
        write_atomically(run_dir / "resolved.yaml", resolved_yaml.encode())
        return _run(plan, prepared, train_set, reporter)


def _run(
    plan: RunPlan, prepared: swift_bridge.Prepared, train_set: CaptionDataset, reporter: Reporter
) -> dict[str, Any]:
    run_dir = Path(plan.run_dir)
    evidence = Evidence()
    write_atomically(run_dir / "manifest.json", to_json(make_manifest(plan)))
    try:
        return _train(plan, prepared, train_set, evidence, reporter)
    except VltoolError as error:
        evidence.failure = str(error).splitlines()[0]
        raise
    finally:
        evidence.write(run_dir)


def _train(
    plan: RunPlan,
    prepared: swift_bridge.Prepared,
    train_set: CaptionDataset,
    evidence: Evidence,
    reporter: Reporter,
) -> dict[str, Any]:
    run_dir = Path(plan.run_dir)
    if plan.tuner.carried is not None:
        evidence.carried = carry(prepared.model, plan.tuner)
        reporter.carried(plan.tuner.carried.checkpoint, evidence.carried)
    audit = audit_before(prepared.model, plan.tuner)
    evidence.towers, evidence.tower_problems = audit.rows, audit.problems
    evidence.write(run_dir)
    reporter.towers(audit.rows)
    if audit.problems:
        raise RunFailed("audit before step 1: " + "; ".join(audit.problems), "the table above shows every tower")

    encode = swift_bridge.encoder(prepared)
    data = plan.data
    train_records, eval_records = EncodedRecords(train_set, encode), None
    if data.val_jsonl is not None:
        val_set = CaptionDataset(Path(data.val_jsonl), **data.reading(validation=True), skip=data.skip_val)
        eval_records = EncodedRecords(val_set, encode)
    if plan.dump_conversation is not None:
        swift_bridge.dump_conversation(prepared, train_records[0], Path(plan.dump_conversation))

    tap = HeadTap(prepared.model)
    trainer = CaptionTrainer(
        model=prepared.model,
        args=prepared.training_arguments,
        template=prepared.template,
        train_dataset=train_records,
        eval_dataset=eval_records,
        distillation=plan.distillation,
        teacher=_teacher(plan, prepared, tap, reporter),
        tap=tap,
    )
    for callback in swift_bridge.MS_SWIFT_CALLBACKS:
        trainer.remove_callback(callback)
    resumed_step = 0 if plan.resume is None else int(Path(plan.resume).name.rpartition("-")[2])
    telemetry = Telemetry(run_dir, reporter, resumed_step=resumed_step)
    step_audit = StepAudit(trainer, evidence, run_dir, fingerprints(prepared.model), reporter)
    stop = Stop()
    # The stop comes last: it saves whatever the others say.
    for callback in (telemetry, step_audit, Saving(plan.saving), stop):
        trainer.add_callback(callback)

    probe = Probe(trainer, train_records) if plan.probe else None
    if probe is not None:
        evidence.ce_before, evidence.kd_at_start = probe.measure()
        evidence.write(run_dir)
    reporter.stage("training")
    try:
        with stop.listening():
            trainer.train(resume_from_checkpoint=plan.resume)
    except torch.OutOfMemoryError as error:
        raise RunFailed(
            f"out of memory in step {trainer.state.global_step + 1}: {str(error).splitlines()[0]}",
            "lower training.per_device_train_batch_size, template.max_pixels or global_max_length, "
            "or turn training.gradient_checkpointing on",
        ) from error
    finally:
        for records in (train_records, eval_records):
            if records is not None:
                records.close()
        telemetry.close()
        checkpoint = last_complete(run_dir)
        evidence.last_checkpoint = None if checkpoint is None else str(checkpoint)
    if probe is not None:
        evidence.ce_after, _ = probe.measure()
        step_audit.look_at_frozen(trainer.state.global_step)
        probe.save(run_dir)
    tap.close()
    evidence.finished = stop.signal is None
    return {
        "step": trainer.state.global_step,
        "max_steps": trainer.state.max_steps,
        "last_checkpoint": evidence.last_checkpoint,
        "signal": stop.signal,
    }


def _teacher(plan: RunPlan, prepared: swift_bridge.Prepared, tap: HeadTap, reporter: Reporter) -> Teacher | None:
    if plan.distillation is None or plan.distillation.llm_kd_weight == 0.0:
        return None
    if plan.distillation.teacher == "adapters_off":
        return AdaptersOff(prepared.model, tap)
    reporter.stage("loading the teacher")
    return FrozenCopy(swift_bridge.build_teacher(plan, prepared))
