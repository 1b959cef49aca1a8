"""An earlier stage's adapter, and how this stage's adapter has to look to carry it. Reads headers, no weights."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from msgspec import Struct

from vltool.checkpoint.architecture import plain_name
from vltool.checkpoint.census import ADAPTER_CONFIG, take_census
from vltool.errors import BadContent, InvalidInput, Problem, Where

_FACTOR = re.compile(r"^(.*)\.lora_A(?:\.default)?\.weight$")
_OTHERWISE = "or merge it into a base of its own: tuner.merge_previous: DIR"


class ChainPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an earlier adapter holds, by the names of the base's modules."""

    checkpoint: str
    rank: int
    scaling: float
    """What the product of its factors is multiplied by: alpha ÷ rank, or ÷ √rank under rsLoRA."""
    adapted: tuple[str, ...]
    """Modules with a LoRA."""
    saved: tuple[str, ...]
    """Modules trained in full, of which it holds copies."""


def read_chain(
    checkpoint: Path, *, base: Path, tuner_type: str, rank: int, use_dora: bool, where: Where | None
) -> ChainPlan:
    """The earlier stage's adapter in `checkpoint`, if this stage's can carry it.

    base, tuner_type, rank, use_dora: this stage's. where: the place in the recipe that names the checkpoint.
    Raises InvalidInput with every reason for which it cannot.
    """
    try:
        census = take_census(checkpoint)
    except (InvalidInput, BadContent) as error:
        raise InvalidInput(
            Problem(f"tuner.resume_from_checkpoint: {p.what}", p.do, where) for p in error.problems
        ) from error
    if census.kind != "adapter":
        what = f"tuner.resume_from_checkpoint: {checkpoint} is a whole model, no adapter"
        raise InvalidInput(Problem(what, "name it in model.model: it is this stage's base", where))
    config: dict[str, Any] = json.loads((checkpoint / ADAPTER_CONFIG).read_bytes())
    problems = [
        Problem(f"tuner.resume_from_checkpoint: {what}", do, where)
        for what, do in _refusals(config, census.base, base, tuner_type, rank, use_dora)
    ]
    if problems:
        raise InvalidInput(problems)
    earlier = int(config["r"])
    factors = (_FACTOR.match(name) for name in census.tensors)
    adapted = tuple(sorted(plain_name(found[1]) for found in factors if found))
    own = [name for name in census.tensors if ".lora_" not in name]
    saved = tuple(sorted({top for name in own if (top := _saved_in(plain_name(name), config["modules_to_save"]))}))
    return ChainPlan(
        checkpoint=str(checkpoint),
        rank=earlier,
        scaling=config["lora_alpha"] / (math.sqrt(earlier) if config.get("use_rslora") else earlier),
        adapted=adapted,
        saved=saved,
    )


def _refusals(
    config: dict[str, Any], earlier_base: str | None, base: Path, tuner_type: str, rank: int, use_dora: bool
) -> list[tuple[str, str]]:
    """Why an adapter of this configuration cannot be carried, and what to do."""
    found = []
    kind = config.get("peft_type")
    if kind != "LORA" or config.get("use_dora", False) != use_dora or tuner_type != "lora":
        mine = "DORA" if use_dora else tuner_type.upper()
        theirs = "DORA" if config.get("use_dora") else kind
        found.append((f"its adapter is {theirs}, this stage's is {mine}", f"keep the kind of tuner, {_OTHERWISE}"))
    elif config["r"] > rank:
        found.append(
            (f"its rank is {config['r']}, this stage's only {rank}", f"write lora_rank: {config['r']}, {_OTHERWISE}")
        )
    if config.get("rank_pattern") or config.get("alpha_pattern") or config.get("bias", "none") != "none":
        found.append(("its ranks differ between modules, or it trained biases", _OTHERWISE.removeprefix("or ")))
    if moves_the_base(config):
        what = f"it lies over a base that init_lora_weights: {config['init_lora_weights']} has changed"
        found.append((what, "convert it to a plain LoRA with the tool that made it"))
    if earlier_base is None or Path(earlier_base).resolve() != base.resolve():
        found.append((f"its base is {earlier_base}, the recipe's is {base}", "name the same base in model.model"))
    return found


def moves_the_base(config: dict[str, Any]) -> bool:
    """Whether an adapter of this configuration lies over other weights than its base's on disk."""
    return str(config.get("init_lora_weights")).startswith(("pissa", "olora", "corda", "loftq", "lora_ga"))


def _saved_in(name: str, modules: list[str] | None) -> str | None:
    """The module that a tensor of a saved copy belongs to, in full, among those that were to be saved."""
    parts = name.split(".")
    tops = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((top for top in tops if any(top.endswith(module) for module in modules or ())), None)
