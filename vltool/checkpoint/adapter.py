"""An adapter's configuration and the names of its tensors, by peft's spelling and that of other tools."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vltool.checkpoint.architecture import plain_name
from vltool.errors import BadContent

MOVERS = ("pissa", "olora", "corda", "loftq", "lora_ga", "eva")
"""Ways to start that may leave the base other than its file is, until the adapter is converted."""

_PREFIXES = (
    "adamss_", "beft_", "boft_", "c3a_", "deft_", "delora_", "fourierft_", "frod_", "glora_", "gralora_", "hada_",
    "hira_", "hra_", "ia3_", "lily_", "ln_tuning_", "lokr_", "lora_", "miss_", "bone_", "oft_", "osf_", "peanut_",
    "poly_", "psoft_", "pvera_lambda_", "randlora_", "ranknum", "road_", "shira_", "tinylora_", "trainable_tokens_",
    "unilora_", "vblora_", "vera_lambda_", "waveft_", "diff_b", "dora_scale",
)  # fmt: skip
"""How the parameters of an adapter begin: peft 0.20's tuners (`prefix` of each model class) and LyCORIS."""
_DOWN = re.compile(r"^(?:lora_A|lora_down|lora_embedding_A)$")
_UP = re.compile(r"^(?:lora_B|lora_up|lora_embedding_B)$")
_MLX_DOWN, _MLX_UP = "lora_a", "lora_b"
"""MLX keeps its factors the other way round: lora_a is (in, r), lora_b (r, out)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What an adapter says of itself."""

    tool: str
    """Whose spelling it is: `peft` or `mlx`."""
    kind: str | None
    """`LORA`, `DORA`, `BOFT`, …"""
    base: str | None
    rank: int | None
    alpha: float | None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    targets: str | tuple[str, ...] | None = None
    """A pattern of whole names, or suffixes of names."""
    excluded: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    """The layers alone that were targeted."""
    target_parameters: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"
    dora: bool = False
    rslora: bool = False
    start: str | None = None
    """`init_lora_weights` where it is no plain start."""
    version: str | None = None
    tokens: tuple[str, ...] = ()
    """Modules of which single tokens were trained."""

    def moves_the_base(self) -> bool:
        """Whether the adapter may lie over other weights than its base's on disk."""
        return self.start is not None and self.start.startswith(MOVERS)

    def rank_of(self, module: str) -> int | None:
        """The rank that the configuration gives a module, by peft's reading of `rank_pattern`."""
        for pattern, rank in self.rank_pattern.items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return rank
            except re.error:
                continue
        return self.rank

    def targeted(self, module: str) -> bool:
        """Whether a linear module of the base is a target, by peft's reading of `target_modules`."""
        if self.excluded is not None and _matches(self.excluded, module):
            return False
        if self.targets is None or not _matches(self.targets, module):
            return False
        index = layer_index(module)
        return self.layers is None or (index is not None and index in self.layers)

    def saved_in(self, name: str) -> str | None:
        """The name in `modules_to_save` that a tensor's module answers to."""
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            top = ".".join(parts[:end])
            for wanted in self.modules_to_save:
                if top.endswith(wanted):
                    return wanted
        return None


@dataclass(frozen=True, slots=True)
class Part:
    """What a tensor's name says."""

    module: str
    """The module of the base, in its terms."""
    kind: str
    """`lora_A`, `boft_R`, …; `weight` or `bias` of a module that is held whole."""
    adapts: bool
    """Whether it belongs to an adapter, not to a module that is held whole."""


_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers|h|deepstack_merger_list)\.(\d+)(?=\.|$)")


def layer_index(name: str) -> int | None:
    """Which block, layer or merger of its tower a name belongs to."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def part_of(name: str) -> Part:
    """Take a tensor's name apart, whichever tool wrote it."""
    plain = plain_name(name)
    for wrapper in ("base_model.", "diffusion_model.", "transformer.", "lora_unet."):
        plain = plain.removeprefix(wrapper)
    parts = [part for part in plain.split(".") if part != "default"]
    # From the end: kohya's names of modules begin as those of factors do (lora_te_layers_0.lora_down.weight).
    for at in range(len(parts) - 1, 0, -1):
        part = parts[at]
        if part.startswith(_PREFIXES) or part == "alpha":
            return Part(".".join(parts[:at]), part, adapts=True)
    if parts[-1] in ("weight", "bias"):
        return Part(".".join(parts[:-1]), parts[-1], adapts=False)
    return Part(".".join(parts), "weight", adapts=False)


def is_adapted(names: Iterable[str]) -> bool:
    """Whether there is a tensor of an adapter among the names."""
    return any(part_of(name).adapts for name in names)


def rank_in(kind: str, shape: tuple[int, ...]) -> int | None:
    """The rank that a factor's shape says; None for what is no factor."""
    if not shape:
        return None
    if _DOWN.match(kind):
        return shape[0]
    if _UP.match(kind) or kind == _MLX_DOWN:
        return shape[1] if len(shape) > 1 else None
    return shape[0] if kind == _MLX_UP else None


def partner(kind: str) -> str | None:
    """The factor without which a factor means nothing."""
    for one, other in (
        ("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_embedding_A", "lora_embedding_B"),
        (_MLX_DOWN, _MLX_UP),
    ):  # fmt: skip
        if kind in (one, other):
            return other if kind == one else one
    return None


def is_up(kind: str) -> bool:
    """Whether it is the factor that starts at zero: a trained adapter has none that is zero throughout."""
    return _UP.match(kind) is not None or kind == _MLX_UP


def read_config(path: Path) -> AdapterConfig:
    """An adapter's configuration; keys that are new to us are left alone, so that newer versions read too.

    Raises BadContent for a file that is no JSON object, or whose values are of the wrong type.
    """
    config = read_json(path)
    if "lora_parameters" in config:
        of_lora = config["lora_parameters"] if isinstance(config["lora_parameters"], dict) else {}
        rank = _whole(path, of_lora, "rank")
        scale = finite(of_lora.get("scale"))
        alpha = scale * rank if scale is not None and rank else of_lora.get("alpha")
        keys = of_lora.get("keys")
        return AdapterConfig(
            tool="mlx",
            kind=str(config.get("fine_tune_type", "lora")).upper(),
            base=_text(path, config, "model"),
            rank=rank,
            alpha=finite(alpha),
            targets=tuple(map(str, keys)) if isinstance(keys, list) else None,
        )
    dora = bool(config.get("use_dora", False))
    kind = _text(path, config, "peft_type")
    start = config.get("init_lora_weights")
    layers = config.get("layers_to_transform")
    tokens = config.get("trainable_token_indices")
    return AdapterConfig(
        tool="peft",
        kind="DORA" if dora and kind == "LORA" else kind,
        base=_text(path, config, "base_model_name_or_path"),
        rank=next((_whole(path, config, key) for key in ("r", "boft_block_size", "rank") if key in config), None),
        alpha=finite(config.get("lora_alpha", config.get("alpha"))),
        rank_pattern={
            str(pattern): rank
            for pattern, rank in _mapping(path, config, "rank_pattern").items()
            if isinstance(rank, int)
        },
        targets=_names(path, config, "target_modules"),
        excluded=_names(path, config, "exclude_modules"),
        layers=(layers,) if isinstance(layers, int) else tuple(layers) if isinstance(layers, list) else None,
        target_parameters=_tuple(_names(path, config, "target_parameters")),
        modules_to_save=_tuple(_names(path, config, "modules_to_save")),
        bias=str(config.get("bias", "none")),
        dora=dora,
        rslora=bool(config.get("use_rslora", False)),
        start=start if isinstance(start, str) else None,
        version=_text(path, config, "peft_version"),
        tokens=tuple(tokens) if isinstance(tokens, dict) else ("embed_tokens",) if tokens else (),
    )


LARGEST_JSON = 64 << 20
"""Bytes of a JSON document beside the weights; the index of the largest models has 10 MB."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises BadContent for anything else."""
    do = "copy the file again"
    try:
        if not path.is_file():
            raise BadContent(f"{path} is missing, or cannot be read", do)
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise BadContent(f"{path} has {size / 1e6:.0f} MB, which no such file has", do)
        raw = path.read_bytes()
        if raw.startswith(b"version https://git-lfs"):
            raise BadContent(f"{path} is a git-lfs pointer: the file itself was never fetched", "git lfs pull")
        document = json.loads(raw)
    except OSError as error:
        raise BadContent(f"{path} cannot be read: {error.strerror}", do) from error
    except (ValueError, RecursionError) as error:
        raise BadContent(f"{path} is no JSON: {error}", do) from error
    if not isinstance(document, dict):
        raise BadContent(f"{path} holds no JSON object", do)
    return document


def _matches(wanted: str | tuple[str, ...], module: str) -> bool:
    if isinstance(wanted, str):
        if wanted in ("all-linear", "all-linear-layers"):
            return module.split(".")[-1] != "lm_head"
        try:
            return re.fullmatch(wanted, module) is not None
        except re.error:
            return False
    return any(module == suffix or module.endswith(f".{suffix}") for suffix in wanted)


def _wrong(path: Path, key: str, config: Mapping[str, Any]) -> BadContent:
    return BadContent(f"{path}: {key} is {config[key]!r:.60}, which is of the wrong type", "copy the file again")


def finite(value: Any) -> float | None:
    """A JSON value as a float; None for what is no number, not finite, or larger than a float can be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _whole(path: Path, config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise _wrong(path, key, config)


def _text(path: Path, config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    if value is None or isinstance(value, str):
        return value
    raise _wrong(path, key, config)


def _mapping(path: Path, config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    if value is None or isinstance(value, dict):
        return value or {}
    raise _wrong(path, key, config)


def _names(path: Path, config: Mapping[str, Any], key: str) -> str | tuple[str, ...] | None:
    value = config.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise _wrong(path, key, config)


def _tuple(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()
