"""Which teacher a run has, and what it shares with the student."""

from __future__ import annotations

from collections.abc import Sequence

from vltool.run.plan import RunPlan
from vltool.run.reporter import Reporter
from vltool.training.collate import EncodedRecords
from vltool.training.ranks import Ranks
from vltool.training.shared_vision import SharedBlocks, common_blocks
from vltool.training.swift_bridge import Prepared, build_teacher
from vltool.training.teacher import AdaptersOff, FrozenCopy, HeadTap, Teacher
from vltool.training.vision_kd import FeatureTap


def make_teacher(
    plan: RunPlan,
    prepared: Prepared,
    taps: tuple[HeadTap, FeatureTap],
    records: Sequence[EncodedRecords],
    ranks: Ranks,
    reporter: Reporter,
) -> Teacher | None:
    """The plan's teacher; None where nothing is asked of one, or its cached word on `records` is complete."""
    kd = plan.distillation
    if kd is None or not kd.needs_teacher:
        return None
    if kd.cache is not None and kd.visual is None:
        missing = sum(len(part.cache.missing()) for part in records if part.cache is not None)
        if not ranks.most(missing):
            return None
    blocks = common_blocks(prepared.model) if kd.teacher_model == plan.model else 0
    shared = SharedBlocks(prepared.model, blocks) if blocks else None
    if kd.teacher == "adapters_off":
        return AdaptersOff(prepared.model, *taps, shared)
    reporter.stage("loading the teacher")
    return FrozenCopy(build_teacher(plan, prepared), shared, offload=kd.offload_teacher)
