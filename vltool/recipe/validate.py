"""A resolved tree becomes a `Recipe`, or all of its problems at once; nothing is invented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as types

from vltool.errors import InvalidInput, Problem, Where
from vltool.recipe.convert import convert, suggest, to_plain
from vltool.recipe.load import KeyNode, MapNode, Node, ScalarNode
from vltool.recipe.paths import anchor_paths
from vltool.recipe.resolve import Resolved, resolve_files
from vltool.recipe.schema import CLOSED, OWN, SECTIONS, TOP_LEVEL, Positive, Recipe

Values = dict[str, dict[str, Any]]
"""Section -> key -> value."""

_FIELDS = {
    section: {field.encode_name: field.type for field in struct.fields}
    for section, struct in ((name, types.type_info(own)) for name, own in OWN.items())
    if isinstance(struct, types.StructType)
}
"""Section -> our keys in it, with their types."""
_LENGTH = types.type_info(Positive)
_LENGTH_KEYS = ("model.max_model_len", "template.max_length")
_PLACEHOLDERS = ("dummy", "placeholder")


def load_recipe(
    recipe: str,
    *,
    base_config: str | None = None,
    overlays: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Recipe:
    """Resolve a recipe (see `resolve`) and validate it (see `validate`); unset variables are told with the rest."""
    resolved, unset = resolve_files(recipe, base_config=base_config, overlays=overlays, env=env)
    return _validate(resolved, cwd or Path.cwd(), unset)


def validate(resolved: Resolved, *, cwd: Path | None = None) -> Recipe:
    """The recipe that the tree means.

    cwd: where relative paths begin that environment variables hold.
    Raises InvalidInput with every problem: those of the recipe itself first, each file's by line.
    """
    return _validate(resolved, cwd or Path.cwd(), [])


def _validate(resolved: Resolved, cwd: Path, unset: list[Problem]) -> Recipe:
    check = _Check(resolved, cwd)
    check.sections()
    length = check.length()
    check.data()
    check.distillation()
    # A text whose variable is missing may be no path and no number; that is not a second mistake.
    told = {problem.where for problem in unset}
    problems = [*unset, *(problem for problem in check.problems if problem.where not in told)]
    if problems:
        raise InvalidInput(sorted(problems, key=lambda problem: _order(resolved, problem.where)))
    return Recipe(
        name=resolved.name,
        files=resolved.files,
        global_max_length=length,
        swift=check.swift,
        origins=check.origins,
        notes=(*resolved.notes, *check.notes),
        **{name: check.build(name) for name in OWN},
    )


def _order(resolved: Resolved, where: Where | None) -> tuple[int, int, int]:
    """The recipe's own problems first: that is the file its user has open."""
    if where is None:
        return (0, 0, 0)
    files = [resolved.file, *resolved.files]
    return (files.index(where.file) if where.file in files else 0, where.line or 0, where.column or 0)


class _Check:
    """Sorts a tree's keys into ours and ms-swift's, and gathers what is wrong with them."""

    def __init__(self, resolved: Resolved, cwd: Path) -> None:
        self.file = resolved.file
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.tree = anchor_paths(resolved.tree, resolved.folders, cwd, self.problems)
        self.origins: dict[str, Where] = {}
        self.own: Values = {name: {} for name in OWN}
        self.swift: Values = {name: {} for name in SECTIONS if name not in CLOSED}
        self.lengths: dict[str, int | None] = {}
        """The length keys that were given; None for what is no length."""

    def sections(self) -> None:
        """Take every key of the tree to where it belongs, converted."""
        _note_origins(self.tree, "", self.origins)
        for key, node in self.tree.entries:
            if key.name == "global_max_length":
                self._length(key.name, node)
            elif key.name not in SECTIONS:
                self._unknown("", key, TOP_LEVEL)
            elif not isinstance(node, MapNode):
                given = f"{node.value!r}" if isinstance(node, ScalarNode) else "a list"
                do = "" if key.name != "deepspeed" else f"write deepspeed: {{enabled: true, config: {given}}}"
                self.problems.append(Problem(f"{key.name}: a mapping belongs here, not {given}", do, node.where))
            else:
                for inner, value in node.entries:
                    self._key(key.name, inner, value)

    def _key(self, section: str, key: KeyNode, node: Node) -> None:
        dotted = f"{section}.{key.name}"
        fields = _FIELDS.get(section, {})
        if key.name in fields:
            self.own[section][key.name] = convert(node, fields[key.name], dotted, self.problems)
        elif section in CLOSED or _owners(key.name):
            self._unknown(section, key, fields)
        elif dotted in _LENGTH_KEYS:
            self._length(dotted, node)
        else:
            self.swift[section][key.name] = to_plain(node, dotted, self.problems)

    def _length(self, key: str, node: Node) -> None:
        before = len(self.problems)
        value = convert(node, _LENGTH, key, self.problems)
        self.lengths[key] = value if len(self.problems) == before else None

    def _unknown(self, section: str, key: KeyNode, choices: Any) -> None:
        owners = _owners(key.name)
        if owners:
            do = f"it belongs in {' or '.join(owners)}"
        elif not section and "." in key.name and key.name.split(".")[0] in SECTIONS:
            do = f"put the key under `{key.name.split('.')[0]}:`"
        else:
            do = suggest(key.name, choices)
        dotted = f"{section}.{key.name}" if section else key.name
        self.problems.append(Problem(f"unknown key {dotted}", do, key.where))

    def length(self) -> int:
        """The one length, put where ms-swift wants it; 0 beside a problem."""
        knob = next((key for key in ("global_max_length", *reversed(_LENGTH_KEYS)) if key in self.lengths), None)
        if knob is None:
            do = "write global_max_length: 4096, or as many tokens as your longest record has"
            self.problems.append(Problem("no length: global_max_length is missing", do, Where(self.file)))
            return 0
        length = self.lengths[knob]
        for key in _LENGTH_KEYS:
            other = self.lengths.get(key, length)
            if other != length and None not in (other, length):
                do = f"write global_max_length alone, it sets both ({knob} is at {self.origins[knob]})"
                self.problems.append(Problem(f"{key} is {other}, but {knob} is {length}", do, self.origins[key]))
            section, name = key.split(".")
            self.swift[section][name] = length
            self.origins.setdefault(key, self.origins[knob])
        return length or 0

    def data(self) -> None:
        """Records come from train_jsonl or a mixture, never from ms-swift's own datasets."""
        given = self.own["data"].pop("dataset", None)
        if given is not None:
            where = self.origins.pop("data.dataset")
            if given in _PLACEHOLDERS or given in ([word] for word in _PLACEHOLDERS):
                self.notes.append(Problem("data.dataset can go: vltool puts ms-swift's placeholder there", where=where))
            else:
                do = "name the records in custom.train_jsonl, or a mixture in custom.fusion_config"
                self.problems.append(Problem("data.dataset: ms-swift's datasets are not used", do, where))
        custom = self.own["custom"]
        if "train_jsonl" in custom and "fusion_config" in custom:
            do = f"write null for one of them (train_jsonl is at {self.origins['custom.train_jsonl']})"
            what = "custom.fusion_config and custom.train_jsonl are both given"
            self.problems.append(Problem(what, do, self.origins["custom.fusion_config"]))
        elif "train_jsonl" not in custom and "fusion_config" not in custom:
            do = "name the training records there, or a mixture in custom.fusion_config"
            self.problems.append(Problem("custom.train_jsonl is missing", do, Where(self.file)))

    def distillation(self) -> None:
        """Keys that mean nothing, or the contrary, without another."""
        rlhf, variant = self.own["rlhf"], self.own["custom"].get("trainer_variant")
        if "rlhf_type" not in rlhf and variant == "gkd_monitor":
            what = "custom.trainer_variant: gkd_monitor distils, but rlhf.rlhf_type is not gkd"
            do = "write rlhf_type: gkd under rlhf, or remove trainer_variant"
            self.problems.append(Problem(what, do, self.origins["custom.trainer_variant"]))
        elif "rlhf_type" not in rlhf and rlhf:
            what = f"rlhf: {', '.join(rlhf)} has no effect without rlhf_type: gkd"
            self.notes.append(Problem(what, where=self.origins["rlhf"]))
        deepspeed = self.own["deepspeed"]
        if deepspeed.get("enabled") is True and "config" not in deepspeed:
            do = "write config: zero2, config: zero3 or a JSON file beside it"
            what = "deepspeed.enabled is true, but deepspeed.config is missing"
            self.problems.append(Problem(what, do, self.origins["deepspeed.enabled"]))

    def build(self, section: str) -> Any:
        """One section's struct; msgspec has the last word on its types."""
        try:
            return msgspec.convert(self.own[section], OWN[section], strict=True)
        except msgspec.ValidationError as error:
            where = self.origins.get(section, Where(self.file))
            raise InvalidInput(Problem(f"{section}: {error}", where=where)) from error


def _owners(key: str) -> list[str]:
    """Sections that have this key of ours."""
    return [section for section, fields in _FIELDS.items() if key in fields]


def _note_origins(tree: MapNode, prefix: str, origins: dict[str, Where]) -> None:
    """Scalars stand where they begin, mappings and lists at their key."""
    for key, node in tree.entries:
        dotted = prefix + key.name
        origins[dotted] = node.where if isinstance(node, ScalarNode) else key.where
        if isinstance(node, MapNode):
            _note_origins(node, f"{dotted}.", origins)
