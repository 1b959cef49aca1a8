"""A recipe, shortened, trained for real and judged by what the run left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from vltool.audit.preflight import audited
from vltool.audit.run_rules import Judge, Verdict
from vltool.data.conversation import Prompts, build_messages
from vltool.data.index import JsonlIndex
from vltool.data.record import parse_record
from vltool.errors import BadContent, InvalidInput, RunFailed
from vltool.recipe.fusion import FusionDataset, load_fusion
from vltool.recipe.load import ScalarNode
from vltool.recipe.paths import anchor_paths
from vltool.recipe.resolve import resolve_files
from vltool.recipe.validate import load_recipe
from vltool.run import launch
from vltool.run.evidence import to_json
from vltool.run.plan import RunPlan, make_plan
from vltool.run.reporter import Reporter

DEMO_JSONL = Path(__file__).parents[1] / "data" / "demo" / "photos.jsonl"
"""Six photographs with boxes, polygons and polylines."""


class SmokeResult(Struct, frozen=True, kw_only=True):
    """What was proved, of which plan."""

    plan: RunPlan
    verdicts: list[Verdict]
    failure: str | None
    """The error that ended the run early."""

    @property
    def passed(self) -> bool:
        """Whether every row that was asked for is proved."""
        return all(verdict.status in ("pass", "not asked") for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {
            "command": "smoke",
            "recipe": self.plan.recipe,
            "passed": self.passed,
            "failure": self.failure,
            "verdicts": [structs.asdict(verdict) for verdict in self.verdicts],
        }


def run_smoke(
    recipe: str, *, tiny: bool, nproc: int | None, keep: Path | None, reporter: Reporter, debug: bool = False
) -> SmokeResult:
    """Train `recipe` with the `smoke` overlay, on its own model and data or on tiny ones, and judge it.

    nproc: processes on this host; None leaves that to the recipe, or takes one where everything is tiny.
    keep: an empty or absent folder for the run; without it the run is deleted afterwards.
    Raises what `vltool train` would raise before its worker starts; an error of the worker is a verdict.
    """
    launch.require_training_stack()
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise InvalidInput(f"--keep {keep}: is not an empty folder", "name one that is empty or does not exist")
    with tempfile.TemporaryDirectory(prefix="vltool-smoke-") as scratch:
        overlays = ["smoke", str(_place(Path(scratch), keep))]
        model = (keep or Path(scratch)) / "tiny-qwen3-vl"
        if tiny:
            overlays.append(str(_tiny_overlay(Path(scratch), model, _photographs_mixed(recipe, Path(scratch)))))
        if tiny or nproc is not None:
            overlays.append(str(_processes(Path(scratch), nproc or 1)))
        resolved = load_recipe(recipe, overlays=overlays)
        if tiny and resolved.rlhf.teacher_completions_cache is not None:
            # What a tiny teacher writes is not for the operator's folder.
            overlays.append(str(_cache_overlay(Path(scratch))))
            resolved = load_recipe(recipe, overlays=overlays)
        for note in resolved.notes:
            # What the overlays made here bring along is no concern of the operator's.
            if note.where is None or Path(scratch).name not in note.where.file:
                reporter.warn(note)
        if tiny:
            reporter.stage("making a tiny Qwen3-VL")
            launch.make_tiny(model, _demo_texts())
        plan = make_plan(resolved, cwd=Path.cwd(), debug=debug, probe=True)
        plan = audited(plan, reporter)
        failure = None
        try:
            launch.train(plan, reporter, resolved=resolved)
        except (RunFailed, BadContent) as error:
            failure = str(error)
        reporter.stage("judging the run")
        verdicts = Judge(plan, launch.reload).verdicts()
        return SmokeResult(plan=plan, verdicts=verdicts, failure=failure)


def _place(scratch: Path, keep: Path | None) -> Path:
    """An overlay that puts the run where smoke wants it, and starts it afresh."""
    run_dir = (keep or scratch).resolve() / "run"
    overlay = scratch / "place.yaml"
    overlay.write_bytes(to_json({"training": {"output_dir": str(run_dir), "resume_from_checkpoint": None}}))
    return overlay


def _processes(scratch: Path, nproc: int) -> Path:
    """An overlay that runs so many processes on this host."""
    overlay = scratch / "processes.yaml"
    nodes = {"nnodes": 1, "node_rank": 0, "rdzv_backend": None, "rdzv_endpoint": None, "rdzv_id": None}
    document = {
        "launch": {"nproc_per_node": nproc, "master_addr": None, "master_port": None} | nodes,
    }
    overlay.write_bytes(to_json(document))
    return overlay


def _photographs_mixed(recipe: str, scratch: Path) -> Path | None:
    """The mixture of a recipe with the photographs in the place of every file; None where the recipe has none.

    Raises InvalidInput for one that cannot be read.
    """
    resolved = resolve_files(recipe, base_config=None, overlays=(), env=None)
    tree = anchor_paths(resolved.tree, resolved.folders, Path.cwd(), [])
    node = tree.find("custom", "fusion_config")
    if not isinstance(node, ScalarNode) or not isinstance(node.value, str) or not node.value:
        return None
    fusion = load_fusion(node.value)

    def entry(dataset: FusionDataset) -> dict[str, Any]:
        kept = {
            name: value
            for name in ("name", "ratio", "user_prompt", "system_prompt", "augmentation_enabled", "curriculum_enabled")
            if (value := getattr(dataset, name)) is not None
        }
        own = {"train_jsonl": str(DEMO_JSONL), "max_objects_per_image": dataset.max_objects_per_image or "all"}
        return kept | own | ({"val_jsonl": str(DEMO_JSONL)} if dataset.role == "target" else {})

    mixed = scratch / "mixture.json"
    targets, sources = [entry(one) for one in fusion.targets], [entry(one) for one in fusion.sources]
    mixed.write_bytes(to_json({"targets": targets, "sources": sources}))
    return mixed


def _tiny_overlay(scratch: Path, model: Path, mixture: Path | None) -> Path:
    """An overlay that replaces a recipe's model and data by tiny ones, and its learning rates by large ones."""
    rate = 5e-3
    photographs = str(DEMO_JSONL) if mixture is None else None
    overlay = scratch / "tiny.yaml"
    document = {
        "model": {"model": str(model.resolve()), "model_type": None, "torch_dtype": "float32"},
        "template": {"max_pixels": 256 * 256},
        "rlhf": {"teacher_model": None, "teacher_model_type": None, "max_completion_length": 32},
        "tuner": {"resume_from_checkpoint": None, "merge_previous": None},
        "training": {
            "bf16": False, "fp16": False, "learning_rate": rate, "aligner_lr": rate, "vit_lr": rate,
            "optimizer": "multimodal", "max_steps": 6, "eval_steps": 3, "save_steps": 3,
        },
        "custom": {
            "train_jsonl": photographs, "val_jsonl": photographs, "val_sample_limit": 2,
            "fusion_config": None if mixture is None else str(mixture),
        },
    }  # fmt: skip
    overlay.write_bytes(to_json(document))
    return overlay


def _cache_overlay(scratch: Path) -> Path:
    """An overlay that keeps the teacher's answers where everything else is tiny."""
    overlay = scratch / "cache.yaml"
    overlay.write_bytes(to_json({"rlhf": {"teacher_completions_cache": str(scratch.resolve() / "completions")}}))
    return overlay


def _demo_texts() -> list[str]:
    """The texts that the tiny tokenizer learns its words from."""
    index = JsonlIndex(DEMO_JSONL)
    texts = []
    for position in range(len(index)):
        record = parse_record(*index.read(position))
        messages = build_messages(
            record,
            prompts=Prompts(user="", system=None),
            emit_norm="norm1000",
            use_summary=False,
            images=list(record.images),
            seen_size=None,
        )
        texts += [message["content"] for message in messages if isinstance(message["content"], str)]
    return texts
