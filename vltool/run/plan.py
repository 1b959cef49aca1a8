"""A recipe and this host -> the one document that every process of a run reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from vltool import __version__
from vltool.checkpoint.architecture import Architecture
from vltool.errors import InvalidInput, Problem
from vltool.recipe.schema import Recipe, Tuner
from vltool.recipe.swift_keys import swift_table
from vltool.run import unsupported
from vltool.run.arguments import TunerPlan, last_blocks_regex, swift_arguments, tuner_arguments
from vltool.run.bases import read_checkpoint
from vltool.run.chain import read_chain
from vltool.run.data import DataPlan
from vltool.run.datasets import absent_files, read_datasets
from vltool.run.deepspeed import deepspeed_config
from vltool.run.distillation import DistillationPlan, distillation_plan
from vltool.run.evidence import to_json
from vltool.run.folder import choose_folder
from vltool.run.merge import MergePlan, read_merge
from vltool.run.quantized import check_quantized
from vltool.run.ranks import LaunchPlan, launch_plan
from vltool.run.resume import check_resume
from vltool.run.teacher_cache import check_cache

SILENT_RESIZERS = ("MAX_PIXELS", "IMAGE_MAX_TOKEN_NUM", "MIN_PIXELS", "IMAGE_MIN_TOKEN_NUM", "SPATIAL_MERGE_SIZE")
"""Environment variables by which the training stack resizes images without a word."""


class SavePlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When checkpoints are saved, beyond what ms-swift's own arguments say."""

    delay_steps: int
    """None before this step, but for the last."""
    last: bool
    """Whether the end of training is saved, whatever the steps of saving."""


class RunPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a rank needs; written as plan.json, and the worker reads nothing else."""

    vltool: str
    recipe: str
    run_dir: str
    resume: str | None
    """Checkpoint folder of this same run from which training goes on."""
    model: str
    """The base of this run; with `merge`, made from the recipe's before the worker starts."""
    model_type: str
    arguments: dict[str, Any]
    """ms-swift's arguments by name."""
    origins: dict[str, str]
    """Argument -> file:line:column of the recipe line that set it."""
    tuner: TunerPlan
    data: DataPlan
    distillation: DistillationPlan | None
    saving: SavePlan
    launch: LaunchPlan
    dump_conversation: str | None
    """File that gets the first training sample as the model reads it."""
    env: dict[str, str]
    debug: bool
    probe: bool
    """Measure a fixed batch before and after training, for `vltool smoke`."""
    merge: MergePlan | None = None
    """The earlier stage that is merged into the recipe's base, in place of an adapter that carries it."""
    warnings: tuple[str, ...] = ()
    """What was warned of before the worker started, for the run folder's warnings.jsonl."""

    @property
    def original(self) -> str:
        """The recipe's base, which is there before anything is merged and has the same shape and tokenizer."""
        return self.model if self.merge is None else self.merge.base

    def to_json(self) -> bytes:
        """The document as indented JSON."""
        return to_json(self)

    @staticmethod
    def from_json(document: bytes) -> RunPlan:
        """The plan that `to_json` wrote."""
        return msgspec.json.decode(document, type=RunPlan)


def make_plan(
    recipe: Recipe,
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    now: datetime | None = None,
    debug: bool = False,
    probe: bool = False,
    to_show: bool = False,
) -> RunPlan:
    """Turn a recipe into a plan for the processes of its run. Writes nothing.

    to_show: the plan is looked at and not run, so that records may be elsewhere and the run folder in use.
    Raises InvalidInput with every problem: what is not built yet, absent paths, a checkpoint that is no
    Qwen3-VL, arguments that contradict each other, a run folder in use.
    """
    env = recipe.launch.env | dict(os.environ if env is None else env)
    problems = [*unsupported.problems(recipe), *_environment(recipe, env)]
    architecture = read_checkpoint(recipe, "model.model", recipe.model.model, problems)
    fusion, train, val = read_datasets(recipe, env, problems)
    if not to_show:
        absent_files(recipe, fusion, problems)
    if not recipe.custom.user_prompt:
        problems.append(
            Problem("custom.user_prompt is missing", "say what the model is asked", recipe.where("custom.user_prompt"))
        )
    model_type = recipe.model.model_type or (architecture.model_type if architecture else "")
    run_dir, resume = choose_folder(recipe, cwd, now or datetime.now(UTC), [] if to_show else problems)
    launch = launch_plan(recipe, env, problems)
    arguments, origins = swift_arguments(recipe, problems, processes=launch.processes)
    deepspeed = deepspeed_config(recipe, problems)
    tuner = _tuner(recipe, architecture, arguments, problems)
    merge = _merge(recipe, architecture, run_dir, problems)
    check_quantized(recipe, architecture, problems)
    distillation = distillation_plan(
        recipe, _base(recipe), architecture, tuner, arguments, problems, every_source=probe
    )
    if problems:
        raise InvalidInput(problems)

    custom = recipe.custom
    arguments |= tuner_arguments(tuner) | {
        "model": _base(recipe),
        "model_type": model_type,
        "output_dir": str(run_dir),
        "max_length": recipe.global_max_length,
        "max_model_len": recipe.global_max_length,
    }
    origins |= _own_origins(recipe)
    if deepspeed is not None:
        arguments["deepspeed"] = deepspeed
        origins["deepspeed"] = str(recipe.where("deepspeed.config"))
    if not val:
        arguments["eval_strategy"] = "no"
        for name in ("eval_strategy", "eval_steps"):
            origins.pop(name, None)
        arguments.pop("eval_steps", None)
    dump = None
    if custom.dump_conversation_text or custom.dump_conversation_path:
        dump = custom.dump_conversation_path or str(run_dir / "conversation.txt")
    plan = RunPlan(
        vltool=__version__,
        recipe=recipe.name,
        run_dir=str(run_dir),
        resume=None if resume is None else str(resume),
        model=str(_base(recipe)),
        model_type=model_type,
        arguments=dict(sorted(arguments.items())),
        origins=origins,
        tuner=tuner,
        data=DataPlan(
            train=train,
            val=val,
            fusion=fusion,
            user_prompt=str(custom.user_prompt),
            system_prompt=custom.system_prompt,
            emit_norm=custom.emit_norm,
            use_summary=custom.use_summary,
            max_length=recipe.global_max_length,
            max_pixels=arguments.get("max_pixels"),
            image_root=env.get("ROOT_IMAGE_DIR") or None,
            augmentation=custom.augmentation if custom.augmentation.enabled else None,
            on_bad_record=recipe.data.on_bad_record,
            preflight=custom.preflight,
        ),
        distillation=distillation,
        saving=SavePlan(
            delay_steps=recipe.training.save_delay_steps,
            last=recipe.training.save_last_epoch,
        ),
        launch=launch,
        dump_conversation=dump,
        env=dict(recipe.launch.env),
        debug=debug,
        probe=probe,
        merge=merge,
    )
    if not to_show:
        check_resume(plan, problems)
        check_cache(plan, problems, recipe.where("rlhf.teacher_cache"), audited=False)
    if problems:
        raise InvalidInput(problems)
    return plan


def _own_origins(recipe: Recipe) -> dict[str, str]:
    """Places of those of ms-swift's arguments that a recipe writes in keys which vltool reads itself."""
    keys = {field: f"tuner.{field}" for field in Tuner.__struct_fields__}
    keys |= {"model": "model.model", "model_type": "model.model_type", "output_dir": "training.output_dir"}
    keys |= dict.fromkeys(("max_length", "max_model_len"), "global_max_length")
    if recipe.tuner.merge_previous is not None:
        keys["model"] = "tuner.merge_previous"
    return {name: str(recipe.origins[key]) for name, key in keys.items() if key in recipe.origins}


def _environment(recipe: Recipe, env: Mapping[str, str]) -> list[Problem]:
    """Variables that would resize images behind the recipe's back."""
    wanted = str(recipe.swift.get("template", {}).get("max_pixels"))
    return [
        Problem(
            f"the environment sets {name}={env[name]}, by which images would be resized silently",
            "unset it: template.max_pixels is the one size knob",
        )
        for name in SILENT_RESIZERS
        if name in env and not (name == "MAX_PIXELS" and env[name] == wanted)
    ]


def _tuner(
    recipe: Recipe, architecture: Architecture | None, arguments: dict[str, Any], problems: list[Problem]
) -> TunerPlan:
    tuner = recipe.tuner
    carried = None
    if tuner.resume_from_checkpoint is not None and tuner.merge_previous is None and architecture:
        try:
            carried = read_chain(
                Path(tuner.resume_from_checkpoint),
                base=Path(str(recipe.model.model)),
                tuner_type=tuner.tuner_type,
                rank=arguments.get("lora_rank", swift_table().keys["lora_rank"].default),
                use_dora=arguments.get("use_dora", False),
                where=recipe.where("tuner.resume_from_checkpoint"),
            )
        except InvalidInput as error:
            problems.extend(error.problems)
        if unsupported.starts_with_pissa(recipe):
            what = "tuner.init_weights: PiSSA starts from the base's own weights, and cannot carry an earlier stage"
            do = "merge that stage into a base of its own: tuner.merge_previous: DIR"
            problems.append(Problem(what, do, recipe.where("tuner.init_weights")))
    depth = architecture.vision_depth if architecture else 0
    frozen_blocks = 0
    if not tuner.freeze_vit and tuner.last_vit_blocks is not None:
        frozen_blocks = max(0, depth - tuner.last_vit_blocks)
    target_regex = tuner.target_regex
    if target_regex is None and frozen_blocks and tuner.tuner_type != "full":
        target_regex = last_blocks_regex(tuner.freeze_llm, tuner.freeze_aligner, frozen_blocks, depth)
    return TunerPlan(
        tuner_type=tuner.tuner_type,
        freeze_llm=tuner.freeze_llm,
        freeze_vit=tuner.freeze_vit,
        freeze_aligner=tuner.freeze_aligner,
        target_modules=tuner.target_modules,
        target_regex=target_regex,
        modules_to_save=tuner.modules_to_save,
        frozen_vit_blocks=frozen_blocks,
        carried=carried,
    )


def _base(recipe: Recipe) -> str | None:
    """The folder of this run's base: the recipe's, or where the earlier stage is merged into it."""
    return recipe.model.model if recipe.tuner.merge_previous is None else recipe.tuner.merge_previous


def _merge(
    recipe: Recipe, architecture: Architecture | None, run_dir: Path, problems: list[Problem]
) -> MergePlan | None:
    tuner = recipe.tuner
    if tuner.merge_previous is None or architecture is None:
        return None
    try:
        return read_merge(
            Path(str(tuner.resume_from_checkpoint)),
            Path(tuner.merge_previous),
            base=Path(str(recipe.model.model)),
            architecture=architecture,
            run_dir=run_dir,
            at_checkpoint=recipe.where("tuner.resume_from_checkpoint"),
            at_folder=recipe.where("tuner.merge_previous"),
        )
    except InvalidInput as error:
        problems.extend(error.problems)
        return None
