"""Write `vltool/recipe/swift_keys.json` from the installed ms-swift: `python tools/swift_keys.py`.

The table is what recipes are checked against without importing ms-swift. Names, types, defaults and
choices come from its argument classes, help from their fields and docstrings, first sentence only.
What older releases called a key, and since when it has its name, no installed version can say: that
stands in `swift_history.json` beside this, gathered from the classes at each of ms-swift's tags.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import re
import types
import typing
from importlib.metadata import version
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).with_name("swift_history.json")
TABLE = Path(__file__).parents[1] / "vltool" / "recipe" / "swift_keys.json"

SECTION_OF_CLASS = {
    "ModelArguments": "model",
    "TemplateArguments": "template",
    "DataArguments": "data",
    "TunerArguments": "tuner",
    "QuantizeArguments": "quantization",
}
"""ms-swift's classes that are a section of a recipe; what the others hold is `training`."""

SECTION_OF_KEY = {
    "custom_register_path": "model",
    "enable_npu_model_patch": "model",
    "lazy_tokenize": "data",
    "load_args": "model",
    "load_data_args": "data",
    "model_kwargs": "model",
    "train_dataloader_shuffle": "data",
    "tuner_backend": "tuner",
    "tuner_type": "tuner",
    "use_hf": "model",
    "use_swift_lora": "tuner",
}
"""Where recipes place keys whose class says otherwise; so do all whose name begins with `dataloader_`."""

_PLAIN = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict", type(None): None}


def table() -> dict[str, Any]:
    """The whole document: versions, renamed and gone keys, then each key's section, type, default, help, choices."""
    from swift.arguments import RLHFArguments, SftArguments

    hints = typing.get_type_hints(RLHFArguments) | typing.get_type_hints(SftArguments)
    sft = {field.name: field for field in dataclasses.fields(SftArguments)}
    fields = {field.name: field for field in dataclasses.fields(RLHFArguments)} | sft
    history = json.loads(HISTORY.read_text(encoding="utf-8"))
    choices = _known_choices()
    keys = {}
    for name, field in sorted(fields.items()):
        cls = SftArguments if name in sft else RLHFArguments
        kinds, literals = _kinds(hints[name])
        if name.endswith("_kwargs"):
            # JSON as text is for the command line; a recipe has mappings.
            kinds = [kind for kind in kinds if kind != "str"]
        entry: dict[str, Any] = {
            "section": _section(name, cls) if name in sft else "rlhf",
            "type": kinds,
            "default": _default(field),
            "help": _help(field, cls),
            "since": history["since"].get(name),
        }
        if literals := choices.get(name, literals):
            entry["choices"] = literals
        keys[name] = entry
    return {
        "ms_swift": version("ms-swift"),
        "transformers": version("transformers"),
        "schedules": _schedules(),
        "renamed": history["renamed"],
        "gone": history["gone"],
        "keys": keys,
    }


def to_json(document: dict[str, Any]) -> str:
    """The document with one line a key, so that a new release reads as a diff."""
    parts = []
    for name, value in document.items():
        text = json.dumps(value)
        if isinstance(value, dict):
            text = (
                "{\n"
                + ",\n".join(f"    {json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items())
                + "\n}"
            )
        parts.append(f"{json.dumps(name)}: {text}")
    return "{" + ",\n".join(parts) + "}\n"


def _known_choices() -> dict[str, list[Any]]:
    """Choices of keys that ms-swift declares as text and looks up in a table of its own."""
    from swift.optimizers import optimizers_map
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import IntervalStrategy, SchedulerType

    return {
        "report_to": sorted({*INTEGRATION_TO_CALLBACK, "all", "none"}),
        "eval_strategy": [item.value for item in IntervalStrategy],
        "lr_scheduler_type": [item.value for item in SchedulerType],
        "optimizer": sorted(optimizers_map),
    }


def _schedules() -> dict[str, list[str] | None]:
    """Schedule of the learning rate -> what it takes from `lr_scheduler_kwargs`; null for anything."""
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    taken: dict[str, list[str] | None] = {}
    for schedule, make in TYPE_TO_SCHEDULER_FUNCTION.items():
        parameters = inspect.signature(make).parameters.values()
        is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        taken[schedule.value] = None if is_open else [one.name for one in parameters if one.name not in given]
    return taken


def _section(name: str, cls: type) -> str:
    if name in SECTION_OF_KEY:
        return SECTION_OF_KEY[name]
    if name.startswith("dataloader_"):
        return "data"
    owners = [parent.__name__ for parent in cls.__mro__ if name in inspect.get_annotations(parent)]
    return next((SECTION_OF_CLASS[owner] for owner in owners if owner in SECTION_OF_CLASS), "training")


def _kinds(hint: Any) -> tuple[list[str], list[Any]]:
    """The kinds of value that a type accepts, null apart, and its choices where it lists them."""
    if hint in _PLAIN:
        kind = _PLAIN[hint]
        return ([kind] if kind else []), []
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return _of_values([value for value in inner if value is not None])
    if origin in (typing.Union, types.UnionType):
        options = [_kinds(option) for option in inner]
        literals = [value for _, values in options for value in values]
        listed = {kind for kinds, values in options if values for kind in kinds}
        # Beside an enumeration `str` means its names; beside `Literal[False]` it means any text.
        if any(kind not in listed for kinds, values in options if not values for kind in kinds):
            literals = []
        return list(dict.fromkeys(kind for kinds, _ in options for kind in kinds)), literals
    if origin in (list, dict):
        return [f"{origin.__name__}[{', '.join(_kinds(item)[0][0] for item in inner)}]"], []
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return _of_values([item.value for item in hint])
    if hint is Any:
        return ["any"], []
    # A class of transformers, which its arguments also read from a file or a mapping.
    return (["str"] if hint is Path or "Config" in hint.__name__ else ["dict"]), []


def _of_values(values: list[Any]) -> tuple[list[str], list[Any]]:
    return list(dict.fromkeys(type(value).__name__ for value in values)), values


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    assert field.default is not dataclasses.MISSING
    return field.default.value if isinstance(field.default, enum.Enum) else field.default


def _help(field: dataclasses.Field[Any], cls: type) -> str:
    """The first sentence of what ms-swift, or else transformers, says of a key."""
    found = re.compile(rf"^ +{field.name} ?\([^\n]*?\) ?:\s*(.*?)(?=\n\s*\n|\n +\w+ ?\(|\Z)", re.MULTILINE | re.DOTALL)
    documented = (found.search(parent.__doc__ or "") for parent in cls.__mro__)
    text = next((match[1] for match in documented if match), field.metadata.get("help") or "")
    text = re.sub(r"\[`([^\]`]+)`\]", r"`\1`", " ".join(text.split()))
    return re.split(r"(?<=[\w)`'\"][.!])\s+(?=[A-Z`'(\[])", text, maxsplit=1)[0]


if __name__ == "__main__":
    TABLE.write_text(to_json(table()), encoding="utf-8")
