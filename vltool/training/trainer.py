"""ms-swift's trainer with vltool's loss, metrics and data. No loss maths here.

Suffixes: B batch, S sequence, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SkipBatchSampler
from torch import Tensor

from vltool.checkpoint.architecture import Tower, tower_of
from vltool.errors import BadContent, RunFailed
from vltool.run.distillation import DistillationPlan, Source
from vltool.run.telemetry import append_skipped
from vltool.training.adalora import orthogonality
from vltool.training.checkpoints import CheckpointingTrainer
from vltool.training.chunks import TopK
from vltool.training.collate import FACTS, BlankImage, Collator, for_the_model, raise_failure, taught_in
from vltool.training.generate import draw_source
from vltool.training.geometry_tokens import GEOMETRIES, numbered
from vltool.training.loader import Batches
from vltool.training.losses import IGNORE, distillation_loss
from vltool.training.meter import Losses, Meter
from vltool.training.quantized import settings_of
from vltool.training.ranks import Ranks
from vltool.training.sampling import Sampler
from vltool.training.swift_bridge import DataLoaderShard, unwrap_model_for_generation
from vltool.training.teacher import HeadTap, Teacher, evaluating, gathered
from vltool.training.teacher_cache import likeliest, split_by_record
from vltool.training.vision_kd import FeatureTap, vision_terms
from vltool.training.window import Window


class CaptionTrainer(CheckpointingTrainer):
    """Cross entropy, with or without a teacher, over label tokens of the whole optimizer step."""

    def __init__(
        self,
        *args: Any,
        distillation: DistillationPlan | None,
        teacher: Teacher | None,
        tap: HeadTap,
        features: FeatureTap,
        ranks: Ranks,
        blank: BlankImage,
        **kwargs: Any,
    ) -> None:
        self._blank = blank
        self._sampling = None if distillation is None else distillation.sampling
        self._source: Source = "dataset"
        super().__init__(*args, ranks=ranks, **kwargs)
        if self.accelerator.num_processes != ranks.count:
            raise RunFailed(
                f"accelerate works with {self.accelerator.num_processes} processes, but the run has {ranks.count}: "
                "each would train on its own",
                "this is a defect of vltool or of its dependencies: please report it with the plan.json",
            )
        self._distillation = distillation
        self._teacher = teacher
        self._sampler = None
        if distillation is not None and distillation.sampling is not None:
            arithmetic = {"dtype": str(self.model.dtype), "bf16": self.args.bf16, "packing": settings_of(self.model)}
            self._sampler = Sampler(
                distillation.sampling,
                self.template,
                self.data_collator,
                self._writing,
                ranks,
                seed=self.args.seed,
                teacher=Path(distillation.teacher_model),
                arithmetic=arithmetic,
                run_dir=Path(self.args.output_dir),
            )
        self._tap = tap
        self._features = features
        self._step_patches = 1.0
        self._patches_a_token = self.accelerator.unwrap_model(self.model).config.vision_config.spatial_merge_size ** 2
        self._train_meter = Meter(distillation)
        self._eval_meter = Meter(distillation)
        self._eval_batches = 0
        self._eval_loader: DataLoaderShard | None = None
        self._group_towers: list[str] = []
        self.window = Window(Path(self.args.output_dir), ranks)
        """The batches since the last row."""
        self.saw_images = False
        """Whether a record of the current optimizer step holds an image, on any process."""
        self.rates: dict[str, float] = {}
        """Learning rates of the last optimizer step, by tower."""

    # --- loss -------------------------------------------------------------------------------------

    def get_use_logits_to_keep(self, default_value: bool = True) -> bool:
        """Never: ms-swift would cut the labels, and this trainer makes no logits."""
        return False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one batch: label tokens' sum, divided by the label tokens of the optimizer step."""
        training = model.training
        runs_kd, counts_kd = self._wants_kd(training)
        out = self._losses(model, inputs, num_items_in_batch if training else None, with_kd=runs_kd)
        total = out.total
        if not training:
            self._eval_batches += 1
        elif not total.requires_grad:
            raise RunFailed(
                "the loss does not depend on anything that trains: no gradient would reach the student",
                "this is a defect of vltool or of its dependencies: please report it with the plan.json",
            )
        meter = self._train_meter if training else self._eval_meter
        source = self._source if training else "dataset"
        meter.add(out, patches=inputs[FACTS].patches, with_kd=counts_kd, source=source)
        meter.count_changes(inputs[FACTS].changes)
        step = self.state.global_step + int(training)
        if skipped := inputs[FACTS].skipped:
            meter.count_skipped(len({problem.where for problem in skipped}))
            append_skipped(Path(self.args.output_dir), step, skipped)
        self.window.add("train" if training else "eval", total, step=step, records=inputs[FACTS].records, source=source)
        # Gradients are averaged over processes, but the denominators are those of all of them.
        loss = total * self._ranks.count if training else total
        if training and (penalty := orthogonality(self.accelerator.unwrap_model(model))) is not None:
            # Its gradient only: rows show the loss of the captions, as for every other tuner.
            loss = loss + penalty / self.current_gradient_accumulation_steps
        return (loss, {}) if return_outputs else loss

    def _wants_kd(self, training: bool) -> tuple[bool, bool]:
        """Whether the teacher runs on the next batch, and whether what it says is counted.

        In evaluation the first batches are counted, in the order in which they are dealt out to processes; but
        a teacher in shards has to run on all of them or none.
        """
        plan = self._distillation
        if plan is None or not plan.needs_teacher:
            return False, False
        if training or plan.eval_kd_batches == "all":
            return True, True
        dealt = self._eval_batches * self._ranks.count
        return dealt < plan.eval_kd_batches, dealt + self._ranks.rank < plan.eval_kd_batches

    def _losses(self, model: Any, inputs: Mapping[str, Any], label_tokens: float | None, *, with_kd: bool) -> Losses:
        """What a batch comes to. label_tokens: those of the optimizer step; None takes the batch for all of it."""
        labels_BS, facts, plan = inputs["labels"], inputs[FACTS], self._distillation
        model_inputs = for_the_model(inputs)
        visual = plan.visual if plan is not None and with_kd else None
        watching = self._teacher.watching() if self._teacher is not None and with_kd else nullcontext()
        with self._features.listening() as student, watching:
            hidden_BSH = self._tap.hidden(model, model_inputs)
        cached = taught_in(inputs) if with_kd else None
        teacher_hidden_NH = teacher_head_VH = taught = None
        if plan is not None and plan.llm_kd_weight > 0.0 and plan.cache is None and with_kd:
            assert self._teacher is not None
            teacher_hidden_BSH, teacher_head_VH, taught = self._teacher.all(model_inputs)
            teacher_hidden_NH = teacher_hidden_BSH[:, :-1].flatten(0, 1)
        elif visual is not None:
            assert self._teacher is not None
            with self.accelerator.autocast():
                taught = self._teacher.features(model_inputs)
        patches = self._step_patches if label_tokens is not None else max(facts.patches, 1)
        vision: dict[str, Tensor] = {}
        if visual is not None and taught is not None:
            vision = vision_terms(student, taught, visual, patches=patches, merged=patches / self._patches_a_token)
            if not facts.patches:
                # The image is a blank one, and counts nowhere.
                vision = {name: term * 0.0 for name, term in vision.items()}
        if label_tokens is None:
            label_tokens = (labels_BS[:, 1:] != IGNORE).sum().clamp(min=1)
        ce_weight = 1.0 if plan is None else plan.sft_alpha
        if model.training and self._source == "student":
            # What the student wrote is no one's caption: it is compared with the teacher alone.
            ce_weight = 0.0
        head_VH = self._tap.weight()
        hidden_NH, labels_N = hidden_BSH[:, :-1].flatten(0, 1), labels_BS[:, 1:].flatten()
        if cached is not None:
            # The cache knows label positions alone.
            positions = (labels_N != IGNORE).nonzero().squeeze(-1)
            hidden_NH, labels_N = hidden_NH[positions], labels_N[positions]
        with gathered(head_VH, teacher_head_VH):
            text = distillation_loss(
                hidden_NH,
                labels_N,
                head_VH,
                teacher_hidden_NH=teacher_hidden_NH,
                teacher_head_VH=teacher_head_VH,
                teacher_topk=cached,
                beta=0.5 if plan is None else plan.beta,
                temperature=1.0 if plan is None else plan.kd_temperature,
                ce_weight=ce_weight,
                kd_weight=0.0 if plan is None else plan.llm_kd_weight,
                group_N=numbered(inputs, labels_N),
                group_count=1 + len(GEOMETRIES),
                denominator=label_tokens,
                chunk_tokens=512 if hidden_BSH.is_cuda else 128,
            )
        return Losses(text=text, vision=vision, label_tokens=label_tokens, patches=patches)

    def ask(self, batch: Mapping[str, Any]) -> Iterator[TopK]:
        """What the teacher says of each record of a batch, for the cache."""
        assert self._distillation is not None
        assert self._distillation.cache is not None
        assert self._teacher is not None
        inputs = self._prepare_inputs(dict(batch))
        labels_BS = inputs["labels"]
        with torch.no_grad(), self.accelerator.autocast():
            hidden_BSH, head_VH = self._teacher.hidden_and_head(for_the_model(inputs))
        with torch.no_grad(), gathered(head_VH):
            topk = likeliest(
                hidden_BSH[:, :-1][labels_BS[:, 1:] != IGNORE],
                head_VH,
                k=self._distillation.cache.topk,
                temperature=self._distillation.kd_temperature,
            )
        return split_by_record(topk, labels_BS)

    def dismiss_teacher(self) -> None:
        """Let go of a teacher that has said all there was to say, and shows nothing."""
        if self._distillation is not None and self._distillation.visual is None:
            self._teacher = None

    def measure(self, batch: Mapping[str, Any]) -> tuple[float, float | None]:
        """Cross entropy and divergence per label token of a batch, without training on it."""
        wants_kd, _ = self._wants_kd(training=True)
        model = self.model_wrapped
        with torch.no_grad(), evaluating(model), self.accelerator.autocast():
            text = self._losses(model, self._prepare_inputs(dict(batch)), None, with_kd=wants_kd).text
        tokens = float(text.tokens)
        return float(text.ce_sum) / tokens, float(text.kd_sum) / tokens if wants_kd else None

    def vision_gradients(self, batch: Mapping[str, Any]) -> dict[Tower, float]:
        """Norm of the gradient that the vision terms alone bring to each tower that trains, of a batch."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        norms: dict[Tower, float] = dict.fromkeys((tower_of(name) for name, _ in named), 0.0)
        # The model itself: a wrapper would wait for the rest of a training step.
        with evaluating(self.model), self.accelerator.autocast():
            vision = self._losses(self.model, self._prepare_inputs(dict(batch)), None, with_kd=True).vision
        total = torch.stack(list(vision.values())).sum()
        if total.requires_grad:
            gradients = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
            for (name, _), gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    norms[tower_of(name)] += float(gradient.norm())
        return norms

    # --- data -------------------------------------------------------------------------------------

    def _get_data_collator(self, args: Any, template: Any) -> Collator:
        pad = super()._get_data_collator(args, template)
        return Collator(pad, self._blank, keeps_prompts=self._sampling is not None)

    def get_train_dataloader(self, skip_batches: int = 0) -> DataLoaderShard:
        """This process's batches of an epoch (see `Batches`), but for the first `skip_batches`."""
        args = self.args
        batches: Any = Batches(
            len(self.train_dataset),
            batch_size=self._train_batch_size,
            rank=self._ranks.rank,
            ranks=self._ranks.count,
            drop_last=args.dataloader_drop_last,
        )
        return self.loader(self.train_dataset, SkipBatchSampler(batches, skip_batches) if skip_batches else batches)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoaderShard:
        """This process's share of the validation records, each of which counts once."""
        if self._eval_loader is None:
            batches = Batches(
                len(self.eval_dataset),
                batch_size=self.args.per_device_eval_batch_size,
                rank=self._ranks.rank,
                ranks=self._ranks.count,
            )
            self._eval_loader = self.loader(self.eval_dataset, batches)
        return self._eval_loader

    def loader(self, records: Any, batches: Any, *, collate: Any = None) -> DataLoaderShard:
        """Batches of these draws or indices, made in workers and on this process's device."""
        args = self.args
        return DataLoaderShard(
            records,
            device=self.accelerator.device,
            batch_sampler=batches,
            collate_fn=collate or self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            **self._maybe_multiprocessing_context(args),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], float]:
        """This process's batches of one optimizer step, and the number of label tokens of all processes' batches.

        Raises BadContent, on every process, for records that could not be encoded.
        """
        batches = list(islice(epoch_iterator, num_batches))
        step = self.state.global_step
        self._source = draw_source(self._sampling, seed=self.args.seed, step=step)
        tokens, patches = self._counted(batches)
        if self._source != "dataset":
            assert self._sampler is not None
            batches = self._sampler.rewritten(batches, source=self._source, step=step, meter=self._train_meter)
            tokens, patches = self._counted(batches)
        self.saw_images = patches > 0
        self._step_patches = max(patches, 1.0)
        return batches, max(tokens, 1.0)

    def _counted(self, batches: list[dict[str, Any]]) -> tuple[float, float]:
        """Label tokens and patches of all processes' batches. Raises BadContent, on every process."""
        facts = [batch[FACTS] for batch in batches]
        tokens, patches, problems = self._ranks.total(
            [
                sum(fact.label_tokens for fact in facts),
                sum(fact.patches for fact in facts),
                sum(len(fact.problems) for fact in facts),
            ]
        )
        if problems:
            mine = [problem for fact in facts for problem in fact.problems]
            raise BadContent(problem for theirs in self._ranks.gather(mine) for problem in theirs)
        return tokens, patches

    @property
    def can_show_gradients(self) -> bool:
        """Whether the current step's loss says something even of a student that is still its teacher's equal.

        On the student's own text it does not: the divergence from an equal is zero, and so is its gradient.
        """
        return self._source != "student" or self._sampling is None or self._sampling.lmbda == 1.0

    @contextmanager
    def _writing(self, source: Source) -> Iterator[Any]:
        """Inside, the model that it gives generates as the source. To be entered by all processes."""
        assert self._distillation is not None
        with ExitStack() as stack:
            if source == "student" or self._distillation.teacher == "adapters_off":
                # Whole, where ZeRO-3 keeps it in shards; a copy is whole anyway.
                stack.enter_context(unwrap_model_for_generation(self.model_wrapped, self.accelerator))
            stack.enter_context(self.accelerator.autocast())
            if source == "student":
                stack.enter_context(evaluating(self.model))
                yield self.model
            else:
                assert self._teacher is not None
                yield stack.enter_context(self._teacher.writing())

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        raise_failure(inputs)
        return dict(super()._prepare_inputs(inputs))

    # --- metrics ----------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log a row; a training row's values come from the sums of its steps, not from means of means."""
        if "loss" in logs:
            logs |= self._train_meter.means(self._ranks, parts=False)
            self._train_meter = Meter(self._distillation)
            if self.rates:
                logs["learning_rate"] = self.rates["all"]
                logs |= {f"learning_rate/{tower}": rate for tower, rate in self.rates.items() if tower != "all"}
        super().log(logs, *args, **kwargs)

    @property
    def kd_weight(self) -> float:
        """What the divergence is multiplied by in rows and in the loss."""
        return 0.0 if self._distillation is None else self._distillation.llm_kd_weight

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.window.add_norm(self.state.global_step + 1, grad_norm)
        return grad_norm

    def window_means(self) -> dict[str, float]:
        """Means over the steps since the last row, of all processes; reading them waits for the device."""
        return self._train_meter.means(self._ranks, parts=False)

    def create_optimizer(self, model: Any = None) -> Any:
        """As the parent's; keeps which tower each group of parameters belongs to, before anything shards them."""
        optimizer = super().create_optimizer(model)
        towers = {id(parameter): tower_of(name) for name, parameter in self.model.named_parameters()}
        self._group_towers = [towers[id(group["params"][0])] for group in optimizer.param_groups]
        return optimizer

    def note_rates(self) -> None:
        """Keep the learning rates of the step about to be taken; those of towers only where they differ."""
        groups = self.optimizer.param_groups
        main = [group for group in groups if group.get("initial_lr") == self.args.learning_rate]
        self.rates = {"all": float((main or groups)[0]["lr"])}
        if self.args.optimizer == "multimodal":
            self.rates |= {tower: float(group["lr"]) for tower, group in zip(self._group_towers, groups, strict=True)}

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's, with loss, sft_loss, llm_kd_loss and token_acc as means over label tokens."""
        self._eval_meter, self._eval_batches = Meter(self._distillation), 0
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.update(
            {f"eval_{name}": value for name, value in self._eval_meter.means(self._ranks, parts=True).items()}
        )
        return output
