"""A resolved tree becomes a `Recipe`, or all of its problems at once; nothing is invented."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as types

from vltool.errors import InvalidInput, Problem, Where
from vltool.recipe import data_rules, distillation_rules, launch_rules, quantization_rules, training_rules, tuner_rules
from vltool.recipe.convert import convert
from vltool.recipe.keys import OWN_KEYS, cleared_nothing, swift_keys, unknown_key
from vltool.recipe.load import KeyNode, MapNode, Node, ScalarNode, SeqNode
from vltool.recipe.paths import anchor_paths
from vltool.recipe.resolve import Resolved, file_of, is_overlay, resolve_files
from vltool.recipe.schema import CLOSED, OWN, REFUSED, SECTIONS, Length, Recipe
from vltool.recipe.settings import Settings, Undecided

Values = dict[str, dict[str, Any]]
"""Section -> key -> value."""

_LENGTH = types.type_info(Length)
_MEANT = {
    ("tuner.tuner_type", "dora"): "write tuner_type: lora and use_dora: true, or extend the overlay dora",
    ("tuner.tuner_type", "qlora"): "write tuner_type: lora, and quant_bits: 4 with a quant_method under quantization",
    ("tuner.tuner_type", "pissa"): "write tuner_type: lora and init_weights: pissa",
    ("tuner.tuner_type", "none"): "write tuner_type: full",
}
"""Key and value -> what says it, for words of the field that are no value there."""
RULES = (
    *tuner_rules.RULES, *data_rules.RULES, *training_rules.RULES, *launch_rules.RULES, *distillation_rules.RULES,
    *quantization_rules.RULES,
)  # fmt: skip
"""What is asked of several keys together, in this order: later rules trust what earlier ones found right."""
_LENGTH_KEYS = ("model.max_model_len", "template.max_length")


def load_recipe(
    recipe: str,
    *,
    base_config: str | None = None,
    overlays: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Recipe:
    """Resolve a recipe (see `resolve`) and validate it (see `validate`); all problems are told together."""
    return validate(resolve_files(recipe, base_config=base_config, overlays=overlays, env=env), cwd=cwd)


def validate(resolved: Resolved, *, cwd: Path | None = None) -> Recipe:
    """The recipe that the tree means.

    cwd: where relative paths begin that environment variables hold.
    Raises InvalidInput with every problem: those of the recipe itself first, each file's by line.
    """
    if not (resolved.tree.entries or resolved.cleared or resolved.broken):
        raise InvalidInput(Problem("the recipe is empty", "write extends: base and what differs", Where(resolved.file)))
    check = _Check(resolved, cwd or Path.cwd())
    check.sections()
    settings = check.settings()
    length = 0
    # What a broken file would have said is no mistake of the others.
    if not resolved.broken:
        length = check.length()
        for rule in RULES:
            with suppress(Undecided):
                rule(settings)
    # A text whose variable is missing may be no path and no number; that is not a second mistake.
    told = {problem.where for problem in resolved.unset}
    found = (problem for problem in (*check.problems, *settings.problems) if problem.where not in told)
    problems = [*resolved.broken, *resolved.unset, *found]
    if problems and len(resolved.files) == 1 and is_overlay(file_of(resolved.file)):
        do = f"put it over a recipe: extends: [stage3, {resolved.name}]"
        raise InvalidInput(Problem(f"{resolved.name} is an overlay, and no recipe by itself", do))
    if problems:
        raise InvalidInput(sorted(problems, key=lambda problem: _order(resolved, problem.where)))
    check.drop_placeholder()
    return Recipe(
        name=resolved.name,
        files=resolved.files,
        global_max_length=length,
        swift=check.swift,
        origins=check.origins,
        notes=(*resolved.notes, *settings.notes),
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
        self.files = resolved.files
        self.problems: list[Problem] = []
        self.wrong: set[str] = set()
        """Keys that have a problem of their own, so that no rule looks at them."""
        self.tree = anchor_paths(resolved.tree, resolved.folders, cwd, self.problems)
        self.misread = {problem.where for problem in self.problems}
        self.cleared = dict(resolved.cleared)
        self.origins: dict[str, Where] = {}
        self.own: Values = {name: {} for name in OWN}
        self.swift: Values = {name: {} for name in SECTIONS if name not in CLOSED}
        self.lengths: dict[str, int | None] = {}
        """The length keys that were given; None for what is no length."""

    def sections(self) -> None:
        """Take every key of the tree to where it belongs, converted."""
        for path, where in self.cleared.items():
            if problem := cleared_nothing(path, where):
                self.problems.append(problem)
        _note_origins(self.tree, "", self.origins)
        for key, node in self.tree.entries:
            if key.name == "global_max_length":
                self._length(key.name, node)
            elif key.name not in SECTIONS:
                self.problems.append(unknown_key("", key.name, key.where))
            elif not isinstance(node, MapNode):
                self.problems.append(_no_mapping(key.name, node))
                self.wrong.add(key.name)
            else:
                for inner, value in node.entries:
                    self._key(key.name, inner, value)

    def _key(self, section: str, key: KeyNode, node: Node) -> None:
        dotted = f"{section}.{key.name}"
        before = len(self.problems)
        if key.name in OWN_KEYS.get(section, {}):
            self.own[section][key.name] = convert(node, OWN_KEYS[section][key.name], dotted, self.problems)
        elif dotted in _LENGTH_KEYS:
            self._length(dotted, node)
        elif key.name not in swift_keys(section):
            self.problems.append(unknown_key(section, key.name, key.where))
        elif key.name in REFUSED:
            self.problems.append(Problem(f"{dotted} has no effect in a recipe", REFUSED[key.name], key.where))
        else:
            wanted = swift_keys(section)[key.name].accepts()
            self.swift[section][key.name] = convert(node, wanted, dotted, self.problems)
        if isinstance(node, ScalarNode) and (meant := _MEANT.get((dotted, node.text))) and len(self.problems) > before:
            self.problems[-1] = replace(self.problems[-1], do=meant)
        if len(self.problems) > before or node.where in self.misread:
            self.wrong.add(dotted)

    def _length(self, key: str, node: Node) -> None:
        before = len(self.problems)
        value = convert(node, _LENGTH, key, self.problems)
        self.lengths[key] = value if len(self.problems) == before else None

    def length(self) -> int:
        """The one length, put where ms-swift wants it; 0 beside a problem."""
        knob = next((key for key in ("global_max_length", *reversed(_LENGTH_KEYS)) if key in self.lengths), None)
        if knob is None:
            do = "write global_max_length: 4096, or as many tokens as your longest record has"
            self.problems.append(
                Problem("no length: global_max_length is missing", do, Where(self.file), id="recipe-length")
            )
            return 0
        length = self.lengths[knob]
        self.origins.setdefault("global_max_length", self.origins[knob])
        for key in _LENGTH_KEYS:
            other = self.lengths.get(key, length)
            if other != length and None not in (other, length):
                do = f"write global_max_length alone, it sets both ({knob} is at {self.origins[knob]})"
                self.problems.append(Problem(f"{key} is {other}, but {knob} is {length}", do, self.origins[key]))
            section, name = key.split(".")
            self.swift[section][name] = length
            self.origins.setdefault(key, self.origins[knob])
        return length or 0

    def settings(self) -> Settings:
        """What the rules on several keys look at."""
        values = {section: self.own.get(section, {}) | self.swift.get(section, {}) for section in SECTIONS}
        cleared = {".".join(path): where for path, where in self.cleared.items()}
        return Settings(self.file, self.files, values, self.origins, cleared, self.wrong)

    def drop_placeholder(self) -> None:
        """Forget `data.dataset`, of which a valid recipe has the placeholder at most."""
        if self.own["data"].pop("dataset", None) is not None:
            del self.origins["data.dataset"]

    def build(self, section: str) -> Any:
        """One section's struct; msgspec has the last word on its types."""
        try:
            return msgspec.convert(self.own[section], OWN[section], strict=True)
        except msgspec.ValidationError as error:
            where = self.origins.get(section, Where(self.file))
            raise InvalidInput(Problem(f"{section}: {error}", where=where)) from error


def _no_mapping(section: str, node: Node) -> Problem:
    """A section that is something else."""
    given = f"{node.value!r}" if isinstance(node, ScalarNode) else "a list"
    do = "indent its keys below it"
    if section == "deepspeed":
        do = f"write deepspeed: {{enabled: true, config: {given}}}"
    elif section == "model" and isinstance(node, ScalarNode):
        do = f"write model: {{model: {node.text}}}"
    elif isinstance(node, ScalarNode) and re.match(r"\w+[:=]|\w+ =", node.text):
        do = "a key, a colon, a space, a value: write learning_rate: 1.0e-4, say"
    return Problem(f"{section}: a mapping belongs here, not {given}", do, node.where)


def _note_origins(tree: MapNode, prefix: str, origins: dict[str, Where]) -> None:
    """Scalars and items of lists stand where they begin, mappings and lists at their key."""
    for key, node in tree.entries:
        dotted = prefix + key.name
        origins[dotted] = node.where if isinstance(node, ScalarNode) else key.where
        if isinstance(node, MapNode):
            _note_origins(node, f"{dotted}.", origins)
        elif isinstance(node, SeqNode):
            for at, item in enumerate(node.items):
                origins[f"{dotted}[{at}]"] = item.where
                if isinstance(item, MapNode):
                    _note_origins(item, f"{dotted}[{at}].", origins)
