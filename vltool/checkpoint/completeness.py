"""What an adapter or a model should hold by its configuration and its base, against what it holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vltool.checkpoint.adapter import AdapterConfig, Part, part_of, partner, rank_in
from vltool.checkpoint.bases import Base
from vltool.checkpoint.inspection import Inspection

_OUTPUT_SIDE = ("lora_B", "lora_up")
_WITHOUT_LAYERS = ("X-LORA", "XLORA", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CARTRIDGE")
"""Kinds of peft that keep no parameters in the modules of the base."""


@dataclass(slots=True)
class Completeness:
    """Names that should be there, or should not."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    """Tensors that do not fit the module of the base, with both shapes."""
    ranks: list[str] = field(default_factory=list)
    """Modules whose rank is not the configuration's, with both."""


def completeness(inspection: Inspection) -> Completeness:
    """Hold the tensors against adapter_config.json and the base, as far as they are here."""
    found = Completeness()
    if inspection.config is not None and inspection.kind.startswith("adapter"):
        _adapter(inspection, inspection.config, found)
    if inspection.full and inspection.kind == "full":
        _model(inspection, found)
    return found


def _model(inspection: Inspection, found: Completeness) -> None:
    names = set(inspection.tensors)
    if inspection.base is not None:
        # A tied head may be stored or not, with the same meaning.
        optional = {"lm_head.weight"} if inspection.tied else set()
        found.missing += sorted(inspection.base.tensors.keys() - names - optional)
        found.unexpected += sorted(names - inspection.base.tensors.keys() - optional)
        for name, tensor in inspection.tensors.items():
            shape = inspection.base.tensors.get(name)
            if shape is not None and shape != tensor.info.shape:
                found.misshapen.append(f"{name} is {_shape(tensor.info.shape)}, the base's {_shape(shape)}")
    elif inspection.tied is False and "lm_head.weight" not in names and any("embed_tokens" in name for name in names):
        found.missing.append("lm_head.weight")


def _adapter(inspection: Inspection, config: AdapterConfig, found: Completeness) -> None:
    names = [name for name in inspection.tensors if name not in inspection.full]
    parts = {name: part_of(name) for name in names}
    kinds: dict[str, set[str]] = defaultdict(set)
    for part in parts.values():
        if part.adapts:
            kinds[part.module].add(part.kind)
    found.missing += _partners(kinds, config)
    found.ranks += _ranks(inspection, config, parts)
    whole = {part.module for part in parts.values() if not part.adapts}
    tops = {top for module in whole if (top := config.saved_in(module))}
    found.missing += [f"{name} (modules_to_save)" for name in config.modules_to_save if name not in tops]
    for name, part in parts.items():
        if not part.adapts and not _may_be_whole(part, config):
            found.unexpected.append(name)
    if inspection.base is not None and config.kind not in _WITHOUT_LAYERS and config.tool == "peft":
        _against_base(inspection, config, inspection.base, parts, kinds, found)


def _may_be_whole(part: Part, config: AdapterConfig) -> bool:
    if config.saved_in(part.module) is not None or any(part.module.endswith(name) for name in config.tokens):
        return True
    return part.kind == "bias" and config.bias != "none"


def _partners(kinds: dict[str, set[str]], config: AdapterConfig) -> Iterator[str]:
    for module, held in kinds.items():
        for kind in sorted(held):
            other = partner(kind)
            if other is not None and other not in held:
                yield f"{module}.{other}"
        if config.dora and "lora_A" in held and not any("magnitude" in kind for kind in held):
            yield f"{module}.lora_magnitude_vector"


def _ranks(inspection: Inspection, config: AdapterConfig, parts: dict[str, Part]) -> Iterator[str]:
    if config.kind not in ("LORA", "DORA") or config.rank is None or config.target_parameters:
        return
    for name, part in parts.items():
        rank = rank_in(part.kind, inspection.tensors[name].info.shape) if part.adapts else None
        wanted = config.rank_of(part.module)
        if rank is not None and rank != wanted and "embedding" not in part.kind:
            yield f"{part.module}.{part.kind} has rank {rank}, the configuration says {wanted}"


def _against_base(
    inspection: Inspection, config: AdapterConfig, base: Base, parts: dict[str, Part], kinds: dict[str, set[str]],
    found: Completeness,
) -> None:  # fmt: skip
    modules = {name.removesuffix(".weight"): shape for name, shape in base.tensors.items() if name.endswith(".weight")}
    stored = {part.module for part in parts.values() if part.adapts}
    bare = base.tensors.keys()
    for name, part in parts.items():
        known = part.module in modules or part.module in bare or (not part.adapts and f"{part.module}.bias" in bare)
        if not known and not (part.module == "lm_head" and base.tied) and not config.target_parameters:
            found.unexpected.append(name)
        elif (shape := modules.get(part.module)) is not None:
            found.misshapen += _misfit(name, part, inspection.tensors[name].info.shape, shape)
    if config.targets is None or config.target_parameters:
        return
    found.missing += sorted(
        f"{module}.{'lora_A' if config.kind in ('LORA', 'DORA') else 'adapter'}"
        for module, shape in modules.items()
        if module not in stored and _linear(module, shape) and config.targeted(module)
        and config.saved_in(module) is None
    )  # fmt: skip


def _linear(module: str, shape: tuple[int, ...] | None) -> bool:
    if shape is not None and len(shape) != 2:
        return False
    return module.split(".")[-1] not in ("embed_tokens", "pos_embed", "patch_embed") and "norm" not in module


def _misfit(name: str, part: Part, shape: tuple[int, ...], base: tuple[int, ...]) -> Iterable[str]:
    if len(base) != 2 or len(shape) != 2:
        fits = part.adapts or part.kind != "weight" or shape == base
    elif part.kind in ("lora_A", "lora_down"):
        fits = shape[1] == base[1]
    elif part.kind in _OUTPUT_SIDE:
        fits = shape[0] == base[0]
    else:
        fits = part.adapts or shape == base
    return () if fits else (f"{name} is {_shape(shape)}, its module in the base {_shape(base)}",)


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "a scalar"
