"""Findings on a recipe's base, and its teacher's: files, tensors, sizes; words are judged in `tokenizer_rules`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vltool.audit import checkpoint_rules
from vltool.audit.finding import Finding, Rule, Severity
from vltool.audit.tokenizer_rules import judge_tokenizers
from vltool.audit.towers import text_of, vision_of
from vltool.checkpoint.adapter import read_json
from vltool.checkpoint.architecture import Architecture, read_architecture
from vltool.checkpoint.completeness import completeness
from vltool.checkpoint.inspection import Inspection, Tensor, inspect
from vltool.errors import BadContent, InvalidInput
from vltool.recipe.schema import Recipe
from vltool.run.plan import RunPlan

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
_PART = re.compile(
    r"^(model\.language_model\.layers|model\.visual\.blocks|model\.visual\.deepstack_merger_list)\.(\d+)\.(.+)$"
)
_TOP = (
    "model.language_model.embed_tokens.weight", "model.language_model.norm.weight",
    "model.visual.patch_embed.proj.weight", "model.visual.pos_embed.weight", "model.visual.merger.linear_fc1.weight",
    "model.visual.merger.linear_fc2.weight",
)  # fmt: skip
_SIZES = {"patch_size": "patch_size", "merge_size": "spatial_merge_size", "temporal_patch_size": "temporal_patch_size"}
"""Keys of an image processor -> those of `vision_config` that have to agree."""
_COMPARED = 1 << 16
_SHOWN = 3


def judge_base(plan: RunPlan, recipe: Recipe) -> list[Finding]:
    """All findings on the base, on a teacher that is another checkpoint, and on both together."""
    base = Path(plan.original)
    found = list(_Judge(base, "model.model", recipe).all())
    teacher = None
    if plan.distillation is not None:
        teacher = Path(plan.distillation.teacher_model)
        if teacher.resolve() in (base.resolve(), Path(plan.model).resolve()):
            teacher = None
    if teacher is not None:
        found += _Judge(teacher, "rlhf.teacher_model", recipe).all()
    return found + judge_tokenizers(recipe, base, teacher)


class _Judge:
    """One checkpoint that a key of the recipe names."""

    def __init__(self, folder: Path, key: str, recipe: Recipe) -> None:
        self._folder, self._key, self._recipe = folder, key, recipe

    def _finding(
        self, rule: str, what: str, remedy: str, *, severity: Severity = "error", key: str = "", evidence: str = ""
    ) -> Finding:
        where = self._recipe.where(key or self._key)
        return Finding(id=rule, severity=severity, what=what, where=where, remedy=remedy, evidence=evidence)

    def all(self) -> Iterator[Finding]:
        """All findings on the folder."""
        try:
            architecture = read_architecture(self._folder)
            config = read_json(self._folder / "config.json")
            inspection = inspect(self._folder)
        except (InvalidInput, BadContent) as error:
            for problem in error.problems:
                yield self._finding("base-format", f"{self._key}: {problem.what}", problem.do)
            return
        yield from self._weights(inspection, architecture, config)
        yield from self._processor(config)
        yield from self._context(config)

    def _weights(
        self, inspection: Inspection, architecture: Architecture, config: Mapping[str, Any]
    ) -> Iterator[Finding]:
        if inspection.kind.startswith("adapter"):
            beside = " and a whole model lie" if inspection.kind == "adapter and full" else " lies"
            what = f"{self._key}: an adapter{beside} in {self._folder}"
            remedy = "name the base that it was trained on, and the adapter in tuner.resume_from_checkpoint"
            yield self._finding("base-adapter", what, remedy)
            return
        files = [
            finding
            for finding in checkpoint_rules.judge(inspection, completeness(inspection), None)
            if finding.severity != "note"
        ]
        yield from files
        if inspection.kind == "broken" and any(finding.severity == "error" for finding in files):
            return
        if inspection.kind != "full":
            what = f"{self._key}: {self._folder} holds weights as {inspection.kind}, which training does not read"
            yield self._finding("base-format", what, "convert them to .safetensors, or download the checkpoint again")
            return
        packed = sorted({tensor.info.dtype for tensor in inspection.tensors.values()} - {*_PLAIN_TYPES})
        if packed:
            names = [name for name, tensor in inspection.tensors.items() if tensor.info.dtype in packed]
            what = f"{self._key}: {len(names):,} tensors are stored as {', '.join(packed)}: {_some(names)}"
            remedy = "name the checkpoint in bfloat16; the recipe's section quantization loads that in 4 bits"
            yield self._finding("base-quantized", what, remedy)
        if not any(finding.severity == "error" for finding in files):
            yield from self._tensors(inspection, architecture)
        yield from self._tied(inspection, config)

    def _tensors(self, inspection: Inspection, architecture: Architecture) -> Iterator[Finding]:
        """What config.json asks for, by the names that the layers of one kind have in common."""
        counts = {
            "model.language_model.layers": architecture.text_layers,
            "model.visual.blocks": architecture.vision_depth,
            "model.visual.deepstack_merger_list": architecture.deepstack_mergers,
        }
        held: dict[str, dict[int, set[str]]] = {part: {} for part in counts}
        for name in inspection.tensors:
            if found := _PART.match(name):
                held[found[1]].setdefault(int(found[2]), set()).add(found[3])
        missing = [name for name in _TOP if name not in inspection.tensors]
        unread: list[str] = []
        for part, count in counts.items():
            common = set().union(*held[part].values())
            if architecture.model_type == "qwen3_vl_moe":
                # Some layers may have a plain MLP in place of experts.
                common = {rest for rest in common if not rest.startswith("mlp.")}
            missing += [
                f"{part}.{at}.{rest}"
                for at in range(count)
                for rest in sorted(common - held[part].get(at, set())) or ([] if common else ["*"])
            ]
            unread += [f"{part}.{at}" for at in sorted(held[part]) if at >= count]
        if len(missing) > len(_TOP) and not any(map(_PART.match, inspection.tensors)):
            named = _some(sorted(inspection.tensors))
            what = f"{self._key}: the tensors have other names than Qwen3-VL's in transformers: {named}"
            remedy = "convert the checkpoint with the tool that wrote it, or download it again"
            yield self._finding("base-tensors", what, remedy)
        elif missing:
            what = f"{self._key}: config.json asks for {len(missing):,} tensors that are absent: {_some(missing)}"
            remedy = "download the checkpoint again: absent tensors would start at random"
            yield self._finding("base-tensors", what, remedy, evidence=", ".join(missing[:200]))
        yield from self._shapes(inspection, architecture)
        if unread:
            what = f"{self._key}: {_some(unread)} lie beyond what config.json counts, and would be left out"
            remedy = "take config.json and weights from one checkpoint"
            yield self._finding("base-tensors", what, remedy, evidence=", ".join(unread[:200]))

    def _shapes(self, inspection: Inspection, architecture: Architecture) -> Iterator[Finding]:
        """Whether tensors of each kind have the sizes that config.json tells."""
        config = read_json(self._folder / "config.json")
        try:
            text, vision = text_of(config["text_config"]), vision_of(config["vision_config"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return  # which keeps memory from being planned, and is told there
        layer, block = "model.language_model.layers.0", "model.visual.blocks.0"
        wanted = {
            "model.language_model.embed_tokens.weight": (text.vocab, text.hidden),
            f"{layer}.self_attn.q_proj.weight": (text.query, text.hidden),
            f"{layer}.self_attn.k_proj.weight": (text.key, text.hidden),
            f"{block}.attn.qkv.weight": (3 * vision.hidden, vision.hidden),
            f"{block}.mlp.linear_fc1.weight": (vision.inner, vision.hidden),
            "model.visual.merger.linear_fc2.weight": (vision.out, vision.merged_hidden),
        }
        if architecture.model_type == "qwen3_vl":
            wanted[f"{layer}.mlp.gate_proj.weight"] = (text.inner, text.hidden)
        differ = [
            f"{name} is {tuple(held.info.shape)}, and should be {shape}"
            for name, shape in wanted.items()
            if (held := inspection.tensors.get(name)) and tuple(held.info.shape) != shape
        ]
        if differ:
            what = f"{self._key}: tensors have other sizes than config.json tells: {differ[0]}"
            remedy = "take config.json and weights from one checkpoint"
            yield self._finding("base-tensors", what, remedy, evidence="; ".join(differ))

    def _tied(self, inspection: Inspection, config: Mapping[str, Any]) -> Iterator[Finding]:
        top, inner = config.get("tie_word_embeddings"), config["text_config"].get("tie_word_embeddings")
        if isinstance(top, bool) and isinstance(inner, bool) and top != inner:
            what = f"{self._key}: config.json says tie_word_embeddings: {_lower(top)}, its text_config {_lower(inner)}"
            remedy = "make them agree: true where no lm_head.weight is stored"
            yield self._finding("base-tied", what, remedy, severity="warning")
        tensors = inspection.tensors
        head, embedding = tensors.get("lm_head.weight"), tensors.get("model.language_model.embed_tokens.weight")
        if inspection.tied and head and embedding and _beginning(head) != _beginning(embedding):
            what = (
                f"{self._key}: lm_head.weight is stored, and tie_word_embeddings: true puts the embedding in its place"
            )
            remedy = "write tie_word_embeddings: false into its config.json, or train without that head"
            yield self._finding("base-tied", what, remedy, severity="warning", evidence=str(head.file))

    def _processor(self, config: Mapping[str, Any]) -> Iterator[Finding]:
        present = [name for name in PROCESSOR_FILES if (self._folder / name).is_file()]
        absent = [] if present else [" or ".join(PROCESSOR_FILES)]
        # Without tokenizer.json no token can be counted, which is told where that is tried.
        if not (self._folder / "tokenizer_config.json").is_file():
            absent.append("tokenizer_config.json")
        if absent:
            what = f"{self._key}: {self._folder} holds no {', no '.join(absent)}"
            yield self._finding("base-processor", what, "copy the whole checkpoint folder")
        for name in present:
            try:
                document = read_json(self._folder / name)
            except BadContent as error:
                for problem in error.problems:
                    yield self._finding("base-processor", f"{self._key}: {problem.what}", problem.do)
                continue
            images = document.get("image_processor", document)
            if not isinstance(images, dict):
                continue
            for key, other in _SIZES.items():
                said, wanted = images.get(key), config["vision_config"].get(other)
                if said is not None and wanted is not None and said != wanted:
                    what = f"{self._key}: {key} is {said} in {name}, and {other} is {wanted} in config.json"
                    yield self._finding("base-processor-size", what, "take both files from one checkpoint")

    def _context(self, config: Mapping[str, Any]) -> Iterator[Finding]:
        most, length = config["text_config"].get("max_position_embeddings"), self._recipe.global_max_length
        if isinstance(most, int) and length > most:
            what = f"global_max_length: {length:,} tokens are more than {self._key} has positions for ({most:,})"
            remedy = f"write global_max_length: {most}, or less"
            yield self._finding("base-context", what, remedy, key="global_max_length")


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _beginning(tensor: Tensor) -> bytes:
    """The first bytes of a tensor, by which two of them are told apart."""
    with tensor.file.open("rb") as file:
        file.seek(tensor.begin)
        return file.read(min(tensor.size_bytes, _COMPARED))


def _lower(value: bool) -> str:
    return str(value).lower()


RULES: tuple[Rule, ...] = (
    Rule(
        id="base-format",
        severity="error",
        means="the base's weights are none that training reads",
        why="vltool trains on safetensors. Pickled weights would run whatever code is in them, shards of DeepSpeed or "
        "FSDP are pieces of a training state, and a folder without weights is an unfinished download.",
        remedy="Download the checkpoint again, or convert it with the tool that wrote it.",
        covers="health check: Correct base model path",
    ),
    Rule(
        id="base-adapter",
        severity="error",
        means="the base is an adapter",
        why="An adapter holds what an earlier stage changed, and no model to change.",
        remedy="Name its base in model.model, and the adapter in tuner.resume_from_checkpoint.",
        covers="health check: Correct base model path",
    ),
    Rule(
        id="base-quantized",
        severity="error",
        means="the base's weights are stored in a quantized type",
        why="Weights in 8 or 4 bits cannot be tuned, and an adapter over them fits no other copy of the model.",
        remedy="Name the checkpoint in bfloat16; quantization: {quant_method: bnb, quant_bits: 4} packs it on loading.",
        covers="health check: Correct base model path",
    ),
    Rule(
        id="base-tensors",
        severity="error",
        means="the base's tensors are not those that its config.json asks for",
        why="transformers starts absent weights at random and leaves out those it does not know, each with a warning "
        "that nobody reads; the run then trains a damaged model.",
        remedy="Take config.json and weights from one checkpoint, and download it again.",
        covers="health check: Correct base model path",
    ),
    Rule(
        id="base-tied",
        severity="warning",
        means="config.json and the weights disagree on whether the head is the embedding",
        why="Where it is tied, a stored head is not read; where parts of config.json differ, tools choose differently, "
        "and a model that was trained tied is served untied.",
        remedy="Make tie_word_embeddings agree with the files: true where no lm_head.weight is stored.",
    ),
    Rule(
        id="base-processor",
        severity="error",
        means="files of the processor or the tokenizer are absent or damaged",
        why="Without them no image and no text becomes an input; the run would stop once the model is loaded, and a "
        "checkpoint without them cannot be served.",
        remedy="Copy the whole checkpoint folder, not the weights alone.",
        covers="health check: Vision tokens present (`pixel_values`, `image_grid_thw`)",
    ),
    Rule(
        id="base-processor-size",
        severity="error",
        means="the image processor cuts patches of another size than the vision tower reads",
        why="Patches do not fit the first layer, or the number of image tokens does not match the placeholders.",
        remedy="Take preprocessor_config.json and config.json from one checkpoint.",
        covers="health check: Vision tokens present (`pixel_values`, `image_grid_thw`)",
    ),
    Rule(
        id="base-context",
        severity="error",
        means="records may be longer than the base has positions for",
        why="Beyond its positions the model has never learnt to attend, and serving tools refuse such lengths.",
        remedy="Lower global_max_length.",
        covers="health check: `global_max_length` or `template.max_length` set",
    ),
)
"""Rules of this module; it also passes on those of `checkpoint_rules`."""
