"""A fusion config becomes a `Fusion`, or all of its problems at once: which datasets are mixed, and how."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta
from msgspec import inspect as types

from vltool.errors import InvalidInput, Problem, Where
from vltool.recipe.convert import convert, suggest
from vltool.recipe.load import MapNode, Node, ScalarNode, SeqNode, load_file
from vltool.recipe.paths import absolute, read_prompt
from vltool.recipe.schema import NonNegative, Positive, Section
from vltool.recipe.variables import substitute

Role = Literal["target", "source"]
TEMPLATE = "qwen3_vl"
"""The one chat template there is: a model reads all datasets through its own."""
SOURCE_OBJECTS = 64
"""Most objects of a source's record, where the config does not say."""


class DomainPrompts(Section, frozen=True, kw_only=True):
    """`domains.target` and `domains.source`: prompts of all datasets of a role."""

    user_prompt: Annotated[str | None, Meta(description="The user's text, or a .txt file that holds it.")] = None
    system_prompt: Annotated[str | None, Meta(description="The system's text, or a .txt file that holds it.")] = None


class Domains(Section, frozen=True, kw_only=True):
    """`domains:` what datasets of a role have in common."""

    target: Annotated[DomainPrompts | None, Meta(description="Prompts of the targets.")] = None
    source: Annotated[DomainPrompts | None, Meta(description="Prompts of the sources.")] = None


class DatasetEntry(Section, frozen=True, kw_only=True):
    """A dataset, as the config writes it."""

    name: Annotated[str | None, Meta(description="What it is called; by default the name of its file.")] = None
    train_jsonl: Annotated[str, Meta(description="Training records, one JSON object a line.")]
    val_jsonl: Annotated[str | None, Meta(description="Validation records.")] = None
    ratio: Annotated[
        Annotated[float, Meta(gt=0.0, le=10_000.0)] | None,
        Meta(description="Of a source: its records an epoch, for each record of the targets."),
    ] = None
    user_prompt: Annotated[str | None, Meta(description="The user's text, or a .txt file that holds it.")] = None
    system_prompt: Annotated[
        str | None, Meta(description="The system's text, or a .txt file that holds it; '' for none.")
    ] = None
    template: Annotated[str | None, Meta(description="`qwen3_vl`, the model's own.")] = None
    augmentation_enabled: Annotated[
        bool | None, Meta(description="Whether the recipe's augmentation applies; by default to targets only.")
    ] = None
    curriculum_enabled: Annotated[
        bool | None, Meta(description="Whether its curriculum does; by default where augmentation applies.")
    ] = None
    max_objects_per_image: Annotated[
        Positive | Literal["all"] | None,
        Meta(description="Most objects of a record, drawn anew every epoch; by default all of a target's, 64 else."),
    ] = None
    seed: Annotated[NonNegative | None, Meta(description="Of its draws; by default made from the run's seed.")] = None
    sample_limit: Annotated[Positive | None, Meta(description="First records used of train_jsonl.")] = None


class FusionDataset(Section, frozen=True, kw_only=True):
    """One dataset of a mixture, with every default decided."""

    key: str
    """Where it stands in the config: `target`, `targets[1]`, `sources[0]`."""
    role: Role
    name: str
    train_jsonl: str
    val_jsonl: str | None = None
    ratio: float | None = None
    """Of a source; a target has none."""
    user_prompt: str | None = None
    """Its own or its domain's; None: the recipe's."""
    system_prompt: str | None = None
    """As user_prompt; empty: none, whatever the recipe has."""
    augmentation_enabled: bool
    curriculum_enabled: bool
    max_objects_per_image: int | None
    seed: int | None = None
    sample_limit: int | None = None


class Fusion(Section, frozen=True, kw_only=True):
    """A validated fusion config; paths are absolute, prompts are texts."""

    file: str
    """As places in messages name it."""
    targets: tuple[FusionDataset, ...]
    sources: tuple[FusionDataset, ...]
    origins: dict[str, Where]
    """`sources[0]`, `sources[0].ratio` -> where that was written."""
    notes: tuple[Problem, ...] = ()

    @property
    def datasets(self) -> tuple[FusionDataset, ...]:
        """Targets, then sources; a dataset's number is its place here."""
        return (*self.targets, *self.sources)

    def where(self, dataset: FusionDataset, key: str = "") -> Where:
        """Where a dataset, or one of its keys, was written."""
        fallback = self.origins.get(dataset.key, Where(self.file))
        return self.origins.get(f"{dataset.key}.{key}", fallback) if key else fallback


_ENTRY, _DOMAINS = types.type_info(DatasetEntry), types.type_info(Domains)
_ENTRIES = types.type_info(tuple[DatasetEntry, ...])
_TOP: dict[str, types.Type] = {"target": _ENTRY, "targets": _ENTRIES, "sources": _ENTRIES, "domains": _DOMAINS}
_OLDER = {
    "dataset": "write name: for what it is called; every dataset is a JSONL of records",
    "domain": "targets and sources are the domains: take the line out",
    "params": "write the keys themselves, without params",
    "mode": "records say by themselves what they hold; custom.use_summary is the recipe's: take the line out",
    "extends": "a fusion config stands alone: write the datasets out",
}
"""Words of older fusion configs, and what to do about them."""


def is_fusion(path: Path) -> bool:
    """Whether a YAML or JSON file has a key of a fusion config at its top level; a recipe has none of them.

    Raises InvalidInput for one that is neither.
    """
    return any(key.name in _TOP for key, _ in load_file(path, shown=_shown(path)).entries)


def _shown(file: Path) -> str:
    return min(str(file.absolute()), os.path.relpath(file), key=len)


def load_fusion(path: str, *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Fusion:
    """Read a fusion config, YAML or JSON.

    env: what `${NAME}` reads, by default the process's environment. cwd: where relative paths begin that a
    variable holds; others begin at the config's folder.
    Raises InvalidInput with every problem, in the file's order.
    """
    file = Path(path).expanduser() if path.startswith("~/") else Path(path)
    if not file.exists():
        raise InvalidInput(Problem(f"no such file: {path}", "give the path of a fusion config", id="path-absent"))
    shown = _shown(file)
    reader = _Reader(shown, file.absolute().parent, cwd or Path.cwd())
    tree = substitute(load_file(file, shown=shown), os.environ if env is None else env, "", reader.problems)
    unset = {problem.where for problem in reader.problems}
    assert isinstance(tree, MapNode)
    fusion = reader.fusion(tree)
    found = [problem for i, problem in enumerate(reader.problems) if i < len(unset) or problem.where not in unset]
    if found:
        raise InvalidInput(sorted(found, key=_order))
    return fusion


def _order(problem: Problem) -> tuple[int, int]:
    where = problem.where or Where("")
    return (where.line or 0, where.column or 0)


class _Reader:
    """Gathers what is wrong with a config while it reads; what it returns counts only if nothing is."""

    def __init__(self, shown: str, folder: Path, cwd: Path) -> None:
        self.shown, self.folder, self.cwd = shown, folder, cwd
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.origins: dict[str, Where] = {}

    def fusion(self, tree: MapNode) -> Fusion:
        top: dict[str, tuple[Where, Node]] = {}
        for key, node in tree.entries:
            if key.name not in _TOP:
                do = _OLDER.get(key.name) or suggest(key.name, _TOP)
                self.problems.append(Problem(f"unknown key {key.name}", do, key.where))
            elif not (isinstance(node, ScalarNode) and node.value is None):
                top[key.name] = (key.where, node)
        if "target" in top and "targets" in top:
            what = f"target and targets are both given (target is at {top['target'][0]})"
            self.problems.append(Problem(what, "list all of them under targets", top["targets"][0]))
        domains = self.domains(top["domains"][1]) if "domains" in top else {}
        targets, sources = [
            [self.dataset(role, key, node, domains) for key, node in self.entries(names, top)] for role, names in _ROLES
        ]
        if not targets and not {"target", "targets"} & set(top):
            close = any(key.name not in _TOP for key, _ in tree.entries)
            do = "" if close else "write target: {train_jsonl: …}, the records that every epoch covers"
            self.problems.append(Problem("there is no target", do, Where(self.shown, 1, 1)))
        found = [dataset for dataset in (*targets, *sources) if dataset is not None]
        self.names(found)
        return Fusion(
            file=self.shown,
            targets=tuple(dataset for dataset in found if dataset.role == "target"),
            sources=tuple(dataset for dataset in found if dataset.role == "source"),
            origins=self.origins,
            notes=tuple(self.notes),
        )

    def entries(self, names: tuple[str, ...], top: dict[str, tuple[Where, Node]]) -> Iterator[tuple[str, MapNode]]:
        """The mappings of some keys, each with its place in the config; anything else is a problem."""
        for name in names:
            if name not in top:
                continue
            where, node = top[name]
            if name != "target" and isinstance(node, MapNode):
                self.problems.append(Problem(f"{name}: a mapping is not a list", "begin the dataset with `- `", where))
                continue
            if name == "target" and isinstance(node, SeqNode):
                self.problems.append(Problem("target: a list is not a mapping", "write targets for several", where))
                continue
            items = node.items if isinstance(node, SeqNode) else (node,)
            if not items and name == "targets":
                self.problems.append(Problem("targets is empty", "name the records that every epoch covers", where))
            for i, item in enumerate(items):
                key = name if name == "target" else f"{name}[{i}]"
                if isinstance(item, MapNode):
                    yield key, item
                else:
                    convert(item, _ENTRY if isinstance(node, SeqNode) else _TOP[name], key, self.problems)

    def domains(self, node: Node) -> dict[str, dict[str, Any]]:
        convert(node, _DOMAINS, "domains", self.problems)
        found: dict[str, dict[str, Any]] = {}
        for role, prompts in node.entries if isinstance(node, MapNode) else ():
            if isinstance(prompts, MapNode):
                nodes = {key.name: value for key, value in prompts.entries}
                found[role.name] = self.prompts(nodes, f"domains.{role.name}")
        return found

    def prompts(self, nodes: Mapping[str, Node], key: str) -> dict[str, str]:
        found = {}
        for name in ("user_prompt", "system_prompt"):
            node = nodes.get(name)
            if isinstance(node, ScalarNode) and isinstance(node.value, str):
                text = self.read(node, f"{key}.{name}", prompt=True)
                if name == "user_prompt" and not text.strip():
                    do = "write what the user asks, or take the line out"
                    self.problems.append(Problem(f"{key}.{name} is empty", do, node.where))
                found[name] = text
        return found

    def read(self, node: ScalarNode, key: str, *, prompt: bool = False) -> str:
        """A path made absolute, or a prompt; the text as it is after noting what is wrong with it."""
        text, folder = str(node.value), self.cwd if node.from_shell else self.folder
        try:
            if prompt:
                return read_prompt(key, text, folder)
            if not text:
                raise InvalidInput(f"{key} is an empty text", "name a JSONL file")
            return str(absolute(key, text, folder))
        except InvalidInput as error:
            self.problems += [replace(problem, where=node.where) for problem in error.problems]
            return text

    def dataset(self, role: Role, key: str, node: MapNode, domains: dict[str, dict[str, Any]]) -> FusionDataset | None:
        """One entry with its defaults; None after noting what is wrong with it."""
        before = len(self.problems)
        self.origins[key] = node.where
        self.origins |= {f"{key}.{name.name}": value.where for name, value in node.entries}
        known = replace(node, entries=tuple(entry for entry in node.entries if entry[0].name not in _OLDER))
        older = [name for name, _ in node.entries if name.name in _OLDER]
        self.problems += [Problem(f"unknown key {key}.{name.name}", _OLDER[name.name], name.where) for name in older]
        values = convert(known, _ENTRY, key, self.problems)
        nodes = {name.name: value for name, value in node.entries}
        self.together(role, key, values, node.where)
        prompts = domains.get(role, {}) | self.prompts(nodes, key)
        paths = {
            name: self.read(nodes[name], f"{key}.{name}")  # type: ignore[arg-type]
            for name in ("train_jsonl", "val_jsonl")
            if isinstance(values.get(name), str)
        }
        if len(self.problems) > before:
            return None
        augmented = values.get("augmentation_enabled")
        augmented = role == "target" if augmented is None else augmented
        curriculum = values.get("curriculum_enabled")
        most = values.get("max_objects_per_image") or ("all" if role == "target" else SOURCE_OBJECTS)
        name = values.get("name")
        return FusionDataset(
            key=key,
            role=role,
            name=_stem(paths["train_jsonl"]) if name is None else name,
            train_jsonl=paths["train_jsonl"],
            val_jsonl=paths.get("val_jsonl"),
            ratio=values.get("ratio"),
            user_prompt=prompts.get("user_prompt"),
            system_prompt=prompts.get("system_prompt"),
            augmentation_enabled=augmented,
            curriculum_enabled=augmented if curriculum is None else curriculum,
            max_objects_per_image=most if isinstance(most, int) else None,
            seed=values.get("seed"),
            sample_limit=values.get("sample_limit"),
        )

    def together(self, role: Role, key: str, values: dict[str, Any], where: Where) -> None:
        """What is wrong, or without effect, in what the keys of a dataset say together."""

        def problem(name: str, what: str, do: str) -> None:
            self.problems.append(Problem(f"{key}.{name}{what}", do, self.origins.get(f"{key}.{name}", where)))

        if values.get("template") not in (None, TEMPLATE):
            what = f": {values['template']!r} cannot be honoured; the model reads every dataset through {TEMPLATE}"
            problem("template", what, "take the line out; prompts of a dataset are user_prompt and system_prompt")
        if values.get("name") is not None and not str(values["name"]).strip():
            problem("name", " is empty", "write what the dataset is called, or take the line out")
        if role == "source" and "ratio" not in values:
            problem("ratio", " is missing", "write how many records it gives for each of the targets': 0.5, say")
        elif role == "source" and values["ratio"] is None:
            problem("ratio", " has no value", "write how many records it gives for each of the targets': 0.5, say")
        if role == "target" and values.get("ratio") is not None:
            problem("ratio", ": an epoch covers every target once", "take the line out, or list it under sources")
        augmented = values.get("augmentation_enabled")
        if values.get("curriculum_enabled") and not (role == "target" if augmented is None else augmented):
            self.note(key, "curriculum_enabled", "without augmentation there is nothing for a curriculum to change")
        most = values.get("max_objects_per_image")
        if role == "target" and values.get("seed") is not None and most in (None, "all"):
            self.note(key, "seed", "a target is covered whole, and no objects are drawn from its records")

    def note(self, key: str, name: str, why: str) -> None:
        what = f"{key}.{name} has no effect: {why}"
        self.notes.append(Problem(what, "take the line out", self.origins[f"{key}.{name}"]))

    def names(self, datasets: list[FusionDataset]) -> None:
        """Datasets are told apart by their names."""
        first: dict[str, FusionDataset] = {}
        for dataset in datasets:
            if dataset.name not in first:
                first[dataset.name] = dataset
                continue
            where = self.origins.get(f"{dataset.key}.name", self.origins[dataset.key])
            what = f"{dataset.key}: {first[dataset.name].key} is called {dataset.name} too"
            self.problems.append(Problem(what, "give one of them another name:", where))


_ROLES: tuple[tuple[Role, tuple[str, ...]], ...] = (("target", ("target", "targets")), ("source", ("sources",)))


def _stem(path: str) -> str:
    """The name of a file without what says how it is written: `coco` of coco.jsonl.zst."""
    name = Path(path).name
    for suffix in (".gz", ".zst", ".jsonl", ".json"):
        name = name.removesuffix(suffix)
    return name or Path(path).name
