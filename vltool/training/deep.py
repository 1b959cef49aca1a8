"""What trains of a plan, counted on a model without weights: the second count, for `check --deep`."""

from __future__ import annotations

from vltool.run.evidence import TowerRow
from vltool.run.plan import RunPlan
from vltool.training import swift_bridge
from vltool.training.chain import hold
from vltool.training.freeze import audit_before
from vltool.training.logs import logs_into


def count(plan: RunPlan) -> list[TowerRow]:
    """The rows of the audit before step 1, of the plan's model and tuner on torch's meta device.

    Raises InvalidInput for a tuner that cannot be made.
    """
    with logs_into(None, show=False):
        model = swift_bridge.outline(plan)
    hold(model, plan.tuner)
    return audit_before(model, plan.tuner).rows
