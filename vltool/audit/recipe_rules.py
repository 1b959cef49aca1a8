"""Findings on what a recipe says by itself: rates, batches, loading, precision, the best checkpoint, distillation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vltool.audit.finding import Finding, Rule, Severity
from vltool.audit.target_rules import judge_targets
from vltool.recipe.schema import Recipe
from vltool.run.arguments import value_of
from vltool.run.plan import RunPlan

USUAL_RATE = {"lora": 1e-4, "full": 5e-5}
"""Tuner -> the operators' learning rate; for the other tuners they name none."""
ABOVE, BELOW = 5.0, 10.0
"""How many times above and below the usual a rate may lie."""
_DEFAULT_RATE = {"full": 1e-5}
"""ms-swift's where a recipe writes none; 1e-4 otherwise."""
USUAL_WORKERS = 16
FEW_WORKERS = 4
SMALL_BATCH = 8
_TO_ZERO = ("linear", "cosine", "cosine_with_restarts")
"""Schedules at whose end the learning rate is zero."""
_WITHOUT_WARM_UP = ("constant", "greedy")
_LOWER_IS_BETTER = {"loss": True, "sft_loss": True, "llm_kd_loss": True, "vision_kd_loss": True, "token_acc": False}

_NOTES: dict[str, Severity] = {
    "tuner-flags": "note",
    "tuner-saves-more": "note",
    "tuner-merge": "note",
    "kd-beta-zero": "note",
    "kd-captions-unseen": "warning",
    "kd-term-zero": "warning",
}
"""Ids that the rules of `vltool.recipe` give their notes, and how bad each is."""


def said(recipe: Recipe) -> list[Finding]:
    """What reading the recipe had to say already, as findings."""
    return [
        Finding(
            id=note.id or "recipe-note",
            severity=_NOTES.get(note.id, "note"),
            what=note.what,
            where=note.where,
            remedy=note.do,
        )
        for note in recipe.notes
    ]


def judge_recipe(plan: RunPlan, recipe: Recipe) -> list[Finding]:
    """All findings on a recipe and what it trains of its base, but for those of `said`."""
    judge = _Judge(plan, recipe)
    return [
        *judge.rates(),
        *judge.schedule(),
        *judge.batch(),
        *judge.loading(),
        *judge.best(),
        *judge.precision(),
        *judge.distillation(),
        *judge.dropout(),
        *judge_targets(plan, recipe),
    ]


class _Judge:
    """A plan and its recipe, asked one question a method."""

    def __init__(self, plan: RunPlan, recipe: Recipe) -> None:
        self._plan, self._recipe, self._tuner = plan, recipe, plan.tuner

    def _value(self, name: str) -> Any:
        return value_of(self._plan.arguments, name)

    def _written(self, *keys: str) -> str:
        """The first of the keys that a file gives a value."""
        return next((key for key in keys if key in self._recipe.origins), keys[0])

    def _finding(
        self, rule: str, severity: Severity, key: str, what: str, remedy: str, *, evidence: str = ""
    ) -> Finding:
        where = self._recipe.where(key)
        return Finding(id=rule, severity=severity, what=what, where=where, remedy=remedy, evidence=evidence)

    def rates(self) -> Iterator[Finding]:
        """Learning rates, of all and by tower."""
        usual = USUAL_RATE.get(self._tuner.tuner_type)
        default = _DEFAULT_RATE.get(self._tuner.tuner_type, 1e-4)
        names = ("learning_rate", "vit_lr", "aligner_lr")
        rates = {name: self._plan.arguments.get(name) for name in names}
        rates["learning_rate"] = default if rates["learning_rate"] is None else rates["learning_rate"]
        given = {name: float(rate) for name, rate in rates.items() if rate is not None}
        for name, rate in given.items():
            key = f"training.{name}"
            if rate == 0:
                worst: Severity = "warning" if any(given.values()) else "error"
                what = f"{key}: at 0 nothing that it counts for is trained"
                yield self._finding("rate-zero", worst, key, what, f"write {name}: {usual or 1e-4:.1e}, or freeze it")
            elif usual is not None and (times := _times_off(rate, usual)):
                what = f"{key}: {rate:g} is {times} the usual {usual:g} of tuner_type: {self._tuner.tuner_type}"
                remedy = (
                    f"write {name}: {usual:.1e}, or watch the first losses: too high diverges, too low stands still"
                )
                yield self._finding("rate-unusual", "warning", key, what, remedy)

    def schedule(self) -> Iterator[Finding]:
        """Warm-up, and a floor under the rate."""
        kind = str(self._value("lr_scheduler_type"))
        if not (self._value("warmup_ratio") or self._value("warmup_steps")) or kind in _WITHOUT_WARM_UP:
            key = self._written("training.warmup_ratio", "training.warmup_steps", "training.lr_scheduler_type")
            without = f"lr_scheduler_type: {kind} has none" if kind in _WITHOUT_WARM_UP else "none is written"
            remedy = "write warmup_ratio: 0.1"
            if kind in _WITHOUT_WARM_UP:
                remedy += " and lr_scheduler_type: constant_with_warmup, or cosine_warmup_with_min_lr with a min_lr"
            what = f"the learning rate starts without a warm-up: {without}"
            yield self._finding("rate-warmup", "warning", key, what, remedy)
        given = self._value("lr_scheduler_kwargs") or {}
        if kind in _TO_ZERO or (kind == "warmup_stable_decay" and not given.get("min_lr_ratio")):
            what = f"lr_scheduler_type: {kind} lets the learning rate fall to zero, so that the last steps train little"
            remedy = "write lr_scheduler_type: cosine_warmup_with_min_lr and lr_scheduler_kwargs: {min_lr: 1.0e-6}"
            if kind == "warmup_stable_decay":
                remedy = "write lr_scheduler_kwargs: {min_lr_ratio: 0.01}"
            yield self._finding("rate-floor", "note", "training.lr_scheduler_type", what, remedy)

    def batch(self) -> Iterator[Finding]:
        """Samples of an optimizer step."""
        on_each = int(self._value("per_device_train_batch_size"))
        times = int(self._value("gradient_accumulation_steps") or 1)
        processes = self._plan.launch.processes
        if (samples := on_each * times * processes) < SMALL_BATCH:
            key = self._written(
                "training.effective_batch_size", "training.gradient_accumulation_steps",
                "training.per_device_train_batch_size",
            )  # fmt: skip
            what = f"an optimizer step sees {samples} sample{'s' * (samples != 1)}: its gradient is noisy"
            evidence = f"{on_each} at once × {times} accumulated × {processes} processes"
            remedy = "write effective_batch_size: 16 under training: accumulation costs no memory"
            yield self._finding("batch-small", "warning", key, what, remedy, evidence=evidence)

    def loading(self) -> Iterator[Finding]:
        """Workers that decode images, and pinned memory."""
        key = "data.dataloader_num_workers"
        given = self._plan.arguments.get("dataloader_num_workers")
        # ms-swift's own where none is written.
        workers = 1 if given is None else int(given)
        if workers < FEW_WORKERS:
            what = f"{workers} workers of each process decode its images"
            if workers < 2:
                what = f"{'one worker alone' if workers else 'no worker'} decodes the images of each process"
            remedy = f"write dataloader_num_workers: {USUAL_WORKERS} under data, as far as the host has cores"
            yield self._finding("loader-workers", "warning", key, f"{key}: {what}", remedy)
        if not self._value("dataloader_pin_memory") and not self._value("use_cpu"):
            what = "batches are copied to the GPU from memory that is not pinned, while it waits"
            remedy = "write dataloader_pin_memory: true under data"
            yield self._finding("loader-pinned", "warning", "data.dataloader_pin_memory", what, remedy)

    def best(self) -> Iterator[Finding]:
        """The metric by which the best checkpoint is chosen."""
        key = "training.metric_for_best_model"
        written = self._plan.arguments.get("metric_for_best_model")
        if written is None:
            return
        metric = str(written).removeprefix("eval_")
        lower, greater = _LOWER_IS_BETTER.get(metric), self._plan.arguments.get("greater_is_better")
        if lower is not None and greater is not None and bool(greater) == lower:
            worst = "highest" if lower else "lowest"
            what = f"training.greater_is_better: {str(greater).lower()} keeps the checkpoint of the {worst} {metric}"
            remedy = f"write greater_is_better: {str(not lower).lower()}, or take the line out"
            yield self._finding("best-direction", "warning", "training.greater_is_better", what, remedy)
        if metric != "loss" and self._plan.launch.processes > 1:
            what = (
                f"{key}: vltool adds {metric} up over all {self._plan.launch.processes} processes before they choose "
                "by it; trainers that do not hang after the best checkpoint"
            )
            remedy = "nothing here; with ms-swift's own trainer, or one from before 2025-11-16, write eval_loss"
            yield self._finding("best-ranks", "note", key, what, remedy)

    def precision(self) -> Iterator[Finding]:
        """Weights that train in 16 bits, without copies in 32."""
        arguments = self._plan.arguments
        if str(self._value("torch_dtype")) != "bfloat16" or "deepspeed" in arguments:
            return
        copies = bool(self._tuner.modules_to_save) and not arguments.get("bf16")
        if self._tuner.tuner_type != "full" and not copies:
            return
        key = self._written("tuner.tuner_type", "model.torch_dtype")
        whose = "all that trains" if self._tuner.tuner_type == "full" else "the copies of modules_to_save"
        what = (
            f"weights, gradients and the optimizer's states of {whose} are in bf16 alone, where small updates round off"
        )
        rate = arguments.get("learning_rate") or _DEFAULT_RATE.get(self._tuner.tuner_type, 1e-4)
        remedy = (
            "use DeepSpeed, which updates fp32 copies: extend zero2; or write torch_dtype: float32 under model and "
            "bf16: true under training, for twice the memory"
        )
        evidence = (
            f"a step at {rate:g} changes a weight of 0.02 by 1/{0.02 / rate:.0f} of it; bf16 drops what is below 1/256"
        )
        yield self._finding("precision-half", "warning", key, what, remedy, evidence=evidence)

    def distillation(self) -> Iterator[Finding]:
        """A student that starts as its teacher and is compared with nothing else."""
        plan, tuner = self._plan.distillation, self._tuner
        if plan is None or plan.sft_alpha > 0 or tuner.tuner_type == "fourierft" or tuner.carried is not None:
            # FourierFT starts away from its base, and so does whoever carries an earlier stage.
            return
        if Path(plan.teacher_model).resolve() == Path(self._plan.model).resolve():
            what = (
                "rlhf.sft_alpha: 0, and the teacher is the student's own base: they agree at the start, so that every "
                "term of the loss and its gradient are zero, and stay so"
            )
            remedy = "write sft_alpha: 0.3, which trains on the captions, or name another rlhf.teacher_model"
            yield self._finding("kd-nothing-learnt", "error", "rlhf.sft_alpha", what, remedy)

    def dropout(self) -> Iterator[Finding]:
        """A dropout that nobody wrote."""
        key = "tuner.lora_dropout"
        reads = self._tuner.tuner_type in ("lora", "adalora")
        if reads and key not in self._recipe.origins and (share := self._value("lora_dropout")):
            what = f"{key}: none is written, and ms-swift's default is {share:g}: losses depend on how a batch is split"
            remedy = "write lora_dropout: 0.0 (or the default, to say that it is meant)"
            yield self._finding("tuner-dropout", "note", key, what, remedy)


def _times_off(rate: float, usual: float) -> str:
    """How far a rate lies from the usual one; nothing where it is near enough."""
    if rate > usual * ABOVE * (1 + 1e-9):
        return f"{rate / usual:.3g} times"
    if rate < usual / BELOW * (1 - 1e-9):
        return f"1/{usual / rate:.3g} of"
    return ""


RULES: tuple[Rule, ...] = (
    Rule(
        id="rate-unusual",
        severity="warning",
        means="a learning rate is far from the usual one of its tuner",
        why="Too high a rate makes the loss spike, diverge or become NaN; too low a one converges so slowly that a run "
        "ends before it has learnt. 1e-4 is usual for LoRA, 5e-5 for full tuning; a rate is reported that is more "
        "than five times above or less than a tenth of it. vit_lr and aligner_lr are held against the same number. "
        "AdaLoRA, BOFT and FourierFT have no usual rate, and are not judged.",
        remedy="Write 1.0e-4 for LoRA, 5.0e-5 for full tuning, unless earlier runs showed that another one is better.",
        covers="troubleshooting: Slow convergence; troubleshooting: NaN loss; FAQ: Loss spikes periodically",
    ),
    Rule(
        id="rate-zero",
        severity="error",
        means="a learning rate is zero",
        why="Gradients are computed, and nothing changes. It is an error where every rate is zero, and a warning where "
        "another tower has one.",
        remedy="Write a rate, or freeze the tower, which saves its gradients and the optimizer's states.",
        covers="troubleshooting: Slow convergence",
    ),
    Rule(
        id="rate-warmup",
        severity="warning",
        means="the learning rate starts at its height",
        why="In the first steps the optimizer's running averages know little, and full steps can throw the model far "
        "off: the loss spikes, and an adapter may not recover.",
        remedy="Write warmup_ratio: 0.1, with a schedule that has a warm-up.",
        covers="FAQ: Loss spikes periodically",
    ),
    Rule(
        id="rate-floor",
        severity="note",
        means="the learning rate falls to zero at the end",
        why="The last steps train next to nothing, and the end of the schedule can be unstable. A floor keeps "
        "improvement going.",
        remedy="Write lr_scheduler_type: cosine_warmup_with_min_lr and lr_scheduler_kwargs: {min_lr: 1.0e-6}.",
        covers="FAQ: Cosine with Min LR",
    ),
    Rule(
        id="batch-small",
        severity="warning",
        means="an optimizer step sees fewer than eight samples",
        why="The gradient of a few captions points anywhere; the loss spikes whenever an unusual record comes.",
        remedy="Raise effective_batch_size (16 is usual): accumulation costs time a step, and no memory.",
        covers="FAQ: Loss spikes periodically; FAQ: Memory Optimization",
    ),
    Rule(
        id="loader-workers",
        severity="warning",
        means="few workers decode images",
        why="Decoding and augmenting a photograph takes tens of milliseconds; with few workers the GPU waits for data "
        "and shows 0% utilisation. Fewer than four for each process are told.",
        remedy="Write dataloader_num_workers: 16, or as many as the host has cores for each process.",
        covers="FAQ: Training stuck at 0% GPU utilization",
    ),
    Rule(
        id="loader-pinned",
        severity="warning",
        means="batches do not lie in pinned memory",
        why="A copy from ordinary memory to the GPU cannot overlap with computing, and every step waits for it.",
        remedy="Write dataloader_pin_memory: true.",
        covers="FAQ: Training stuck at 0% GPU utilization",
    ),
    Rule(
        id="best-ranks",
        severity="note",
        means="several processes choose the best checkpoint by a metric that each could know differently",
        why="Where each process chooses by its own token accuracy, some save and the others wait in a collective "
        "until NCCL's monitored barrier ends the run. vltool's metrics are sums over all processes, so that all choose "
        "alike; the recipe is not safe in other trainers.",
        remedy="Nothing with vltool. Elsewhere choose by eval_loss.",
        covers="troubleshooting: NCCL monitoredBarrier after best checkpoint",
    ),
    Rule(
        id="best-direction",
        severity="warning",
        means="the checkpoint that is kept as the best is the worst",
        why="greater_is_better says the contrary of what the metric means: a loss is better where it is lower, an "
        "accuracy where it is higher.",
        remedy="Take greater_is_better out: it follows from the metric's name.",
    ),
    Rule(
        id="precision-half",
        severity="warning",
        means="weights and the optimizer's states that train exist in bf16 alone",
        why="bf16 has eight significant bits. An update smaller than 1/256 of a weight is rounded away, and with it "
        "most of what a small learning rate would change; the second moments of Adam suffer likewise. DeepSpeed keeps "
        "fp32 copies, and vltool trains adapters in fp32.",
        remedy="Use DeepSpeed (extend the overlay zero2), or write torch_dtype: float32 under model and bf16: true "
        "under training.",
        covers="troubleshooting: NaN loss; troubleshooting: Slow convergence",
        source="https://pytorch.org/docs/stable/type_info.html",
    ),
    Rule(
        id="kd-nothing-learnt",
        severity="error",
        means="a student is distilled from itself, and captions have no weight",
        why="An adapter starts as its base, which is the teacher here. Their divergence and its gradient are zero; "
        "without sft_alpha there is nothing else to learn from.",
        remedy="Write sft_alpha: 0.3 (or 1.0 for forward-only distillation), or name a teacher that knows more.",
    ),
    Rule(
        id="kd-beta-zero",
        severity="note",
        means="rlhf.beta is exactly zero",
        why="beta interpolates between the forward and the reverse KL, and weighs nothing. Near 0 the divergence is "
        "as small as beta; at exactly 0 it is the full forward KL, far stronger than at 0.05.",
        remedy="For a light anchor write beta: 0.1, or lower llm_kd_weight, which is the weight.",
    ),
    Rule(
        id="kd-captions-unseen",
        severity="warning",
        means="the operator's captions are never trained on",
        why="With seq_kd and a ratio of 1, or with lmbda: 1, every step's text is the teacher's or the student's own.",
        remedy="Write seq_kd_ratio: 0.5 beside seq_kd, or lmbda: 0.5.",
    ),
    Rule(
        id="kd-term-zero",
        severity="warning",
        means="a term of visual_kd is always zero",
        why="Nothing trains at or before the features that it compares, so that student and teacher agree. "
        "The usual case is vit over a frozen vision tower.",
        remedy="Turn the term off, or unfreeze what it should hold: freeze_vit: false.",
    ),
    Rule(
        id="tuner-flags",
        severity="note",
        means="a freeze flag and the adapter's targets say different things",
        why="Targets by name or pattern reach what they reach, whatever the flags say: so the aligner is tuned "
        "with every flag set. Make sure that it is meant.",
        remedy="Make the two agree, or write target_modules: [all-linear], which the flags narrow.",
        covers="health check: Adapter config correct (for LoRA mode)",
    ),
    Rule(
        id="tuner-saves-more",
        severity="note",
        means="a name in modules_to_save means more modules than the one that was thought of",
        why="peft takes every module whose name ends with these characters: norm saves q_norm and k_norm, too.",
        remedy="Write the module's name in full.",
        covers="health check: `modules_to_save` lists any full-tuned modules (if used)",
    ),
    Rule(
        id="tuner-merge",
        severity="note",
        means="the adapter cannot be merged into its base afterwards",
        why="peft merges no BOFT and no FourierFT that carries copies of modules; they train and reload.",
        remedy="Serve it as an adapter, or choose lora, dora or adalora.",
        covers="health check: Adapter config correct (for LoRA mode)",
    ),
    Rule(
        id="tuner-dropout",
        severity="note",
        means="dropout is on by default",
        why="ms-swift's lora_dropout is 0.05 where a recipe writes none. Runs then depend on how a batch is split over "
        "processes, and every adapted layer keeps a copy of its input.",
        remedy="Write lora_dropout: 0.0, as the shipped recipes do.",
    ),
)
"""Rules of this module, and of the notes that `said` passes on."""
