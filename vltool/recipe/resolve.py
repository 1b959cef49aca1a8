"""A recipe, what it extends and what lies under and over it become one tree with origins; no key is checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from vltool.errors import InvalidInput, Problem, Where, nearest
from vltool.recipe.load import KeyNode, MapNode, Node, ScalarNode, SeqNode, load_file
from vltool.recipe.paths import exists, is_link, shortest
from vltool.recipe.spelling import modernise
from vltool.recipe.variables import substitute

MAX_CHAIN = 50
"""Recipes that extend each other; no chain needs as many, and Python's stack ends somewhere."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """One tree out of all files: variables replaced, cleared keys gone, every node where it was written."""

    name: str
    """The recipe's bare name, without folder and extension."""
    file: str
    """The recipe itself, as places name it."""
    files: tuple[str, ...]
    """All files that were read, in the order in which they were merged."""
    folders: Mapping[str, Path]
    """File, as places name it -> the folder that its relative paths start from."""
    tree: MapNode
    notes: tuple[Problem, ...]
    broken: tuple[Problem, ...] = ()
    """What is wrong with the files; the tree lacks what they would have added."""
    unset: tuple[Problem, ...] = ()
    """Variables that are not set."""
    cleared: tuple[tuple[tuple[str, ...], Where], ...] = ()
    """Keys that null clears, with the sections around them; the tree has them no more."""


OVERLAY = "Overlay: "
"""How the header of an overlay begins."""


@cache
def shipped_recipes() -> Mapping[str, Path]:
    """Bare name -> file of the recipes that come with vltool."""
    package = Path(__file__).absolute().parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if found := {path.stem: path for path in sorted(folder.glob("*.yaml"))}:
            return found
    return {}


def headline(shipped: Path) -> str:
    """What a shipped file is for: the first line of its header."""
    lines = (line[2:] for line in shipped.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return next(line for line in lines if not line.startswith("yaml-language-server"))


def is_overlay(file: Path) -> bool:
    """Whether a file is a shipped overlay, to be put over a recipe."""
    return shipped_recipes().get(file.stem) == file.absolute() and headline(file).startswith(OVERLAY)


def find_recipe(name: str, *, beside: Path | None = None) -> tuple[Path, Problem | None]:
    """The file that a path or a shipped recipe's bare name means, with a note where that may surprise.

    beside: the folder that a relative path starts from, by default the working directory.
    Raises InvalidInput when there is none, with the nearest name that there is.
    """
    shipped = shipped_recipes()
    path = (beside or Path()) / (Path(name).expanduser() if name.startswith("~/") else name)
    # A pipe on the shell's line (`<(…)`) can be read, one that lies about would wait for ever.
    if exists(path) and not path.is_dir() and (not path.is_fifo() or path.absolute().parts[1] in ("dev", "proc")):
        return path, None
    if name in shipped:
        return shipped[name], None
    if Path(name).parts[:-1] == ("recipes",) and Path(name).suffix == ".yaml" and Path(name).stem in shipped:
        return shipped[Path(name).stem], Problem(f"no file {name} here: the shipped recipe {Path(name).stem} is used")
    listed = f"shipped recipes: {', '.join(shipped)}"
    if not name:
        raise InvalidInput(Problem("a recipe's name is empty", listed))
    if exists(path):
        raise InvalidInput(
            Problem(f"{name} is a {'folder' if path.is_dir() else 'pipe'}, no recipe", listed, id="path-absent")
        )
    if is_link(path):
        what = f"{name} is a link to {path.readlink()}, which is not there"
        raise InvalidInput(Problem(what, "mend the link", id="path-absent"))
    if "," in name:
        names = ", ".join(part.strip() for part in name.split(","))
        raise InvalidInput(Problem(f"no recipe {name}", f"for several write a list: [{names}]", id="path-absent"))
    choices = {stem: stem for stem in shipped}
    if exists(path.parent):
        choices |= {file.stem: str(Path(name).parent / file.name) for file in sorted(path.parent.glob("*.y*ml"))}
    guess = nearest(path.stem, choices)
    do = f"did you mean {choices[guess]}?" if guess else listed
    raise InvalidInput(Problem(f"no recipe {name}", do, id="path-absent"))


def merge(below: Node, above: Node) -> Node:
    """Put `above` over `below`: mappings merge deeply, anything else replaces. Associative."""
    if not isinstance(above, MapNode) or above.replaces:
        return above
    if not isinstance(below, MapNode):
        return replace(above, replaces=True)
    entries = {key.name: (key, value) for key, value in below.entries}
    for key, value in above.entries:
        old = entries.get(key.name)
        entries[key.name] = (key, merge(old[1], value) if old else value)
    return MapNode(above.where, tuple(entries.values()), below.replaces)


def resolve(
    recipe: str,
    *,
    base_config: str | None = None,
    overlays: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Resolved:
    """Merge base_config, the recipe's `extends`, the recipe and the overlays; the later wins.

    Within a recipe and its overlays each file is merged once, where it is reached first: two recipes
    that extend the same base do not undo each other's changes to it.

    recipe, base_config, overlays: paths or bare names. env: by default the process's environment.
    Raises InvalidInput with the problems of all files, or with those of all variables.
    """
    resolved = resolve_files(recipe, base_config=base_config, overlays=overlays, env=env)
    if problems := resolved.broken or resolved.unset:
        raise InvalidInput(problems)
    return resolved


def resolve_files(
    recipe: str, *, base_config: str | None, overlays: Sequence[str], env: Mapping[str, str] | None
) -> Resolved:
    """As `resolve`, but problems of files and variables are handed over, to be told with those of the keys.

    Texts with an unset variable are left as they were written. Raises InvalidInput when the recipe itself is not found.
    """
    environment = os.environ if env is None else env
    reader = _Reader(environment)
    under = [] if base_config is None else [base_config]
    paths = [reader.find(name, None, None) for name in (*under, recipe, *overlays)]
    own = paths[len(under)]
    beneath = [file for path in paths[: len(under)] if path for file in reader.order(path)]
    above = list(dict.fromkeys(file for path in paths[len(under) :] if path for file in reader.order(path)))
    if own is None:
        raise InvalidInput(reader.problems)
    tree = reader.merged([*beneath, *above])
    unset: list[Problem] = []
    cleared: list[tuple[tuple[str, ...], Where]] = []
    replaced = substitute(tree, environment, "", unset)
    assert isinstance(replaced, MapNode)
    return Resolved(
        name=own.stem,
        file=_shown(own),
        files=tuple(dict.fromkeys(_shown(file) for file in (*beneath, *above))),
        folders=reader.folders,
        tree=_without_nulls(replaced, (), cleared),
        notes=tuple(reader.notes),
        broken=tuple(reader.problems),
        unset=tuple(unset),
        cleared=tuple(cleared),
    )


class _Reader:
    """Reads files with what they extend, each once, and gathers problems and notes."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.folders: dict[str, Path] = {}
        self._own: dict[Path, MapNode] = {}
        self._orders: dict[Path, list[Path]] = {}
        self._chain: list[tuple[Path, Where]] = []
        """The files being read, outermost first, each with the `extends` in it that is being followed."""

    def find(self, name: str, beside: Path | None, where: Where | None) -> Path | None:
        """The file of that name; None after noting that there is none."""
        try:
            path, note = find_recipe(name, beside=beside)
        except InvalidInput as error:
            self.problems += [replace(problem, where=where) for problem in error.problems]
            return None
        if note:
            self.notes.append(replace(note, where=where))
        return path

    def order(self, path: Path) -> list[Path]:
        """The files that a recipe extends, each once, the lowest first; then the recipe itself."""
        path = shortest(path.absolute())
        if len(self._chain) > MAX_CHAIN:
            what = f"more than {MAX_CHAIN} recipes that extend each other"
            raise InvalidInput([*self.problems, Problem(what, where=self._chain[-1][1])])
        if path not in self._orders:
            shown = _shown(path)
            try:
                own = modernise(load_file(path, shown=shown), self.problems, self.notes)
            except InvalidInput as error:
                self.problems += error.problems
                own = MapNode(Where(shown), ())
            order: list[Path] = []
            for name in self._extends(own):
                order += [file for file in self._beneath(path, name, order) if file not in order]
            self.folders[shown] = path.parent
            self._own[path] = replace(own, entries=tuple(entry for entry in own.entries if entry[0].name != "extends"))
            self._orders[path] = [*order, path]
        return self._orders[path]

    def _beneath(self, path: Path, name: ScalarNode, already: list[Path]) -> list[Path]:
        """The files of one name in `extends`; none after noting why there are none."""
        assert isinstance(name.value, str)
        base = self.find(name.value, None if name.from_shell else path.parent, name.where)
        if base is None:
            return []
        if shortest(base.absolute()) in already:
            what = f"extends: {name.value} lies beneath the recipes before it already, and is not merged again"
            self.notes.append(Problem(what, "take it out of the list", name.where))
            return []
        self._chain.append((path, name.where))
        order = [] if self._closes_cycle(base, name.where) else self.order(base)
        self._chain.pop()
        return order

    def merged(self, files: Sequence[Path]) -> MapNode:
        """These files in one tree, without `extends`; a note tells of each section that a forgotten value clears."""
        tree: Node = MapNode(Where(""), ())
        for file in files:
            self.notes += _emptied(tree, self._own[file], "")
            tree = merge(tree, self._own[file])
        assert isinstance(tree, MapNode)
        return tree

    def _extends(self, tree: MapNode) -> Iterator[ScalarNode]:
        for key, node in tree.entries:
            if key.name != "extends":
                continue
            before = len(self.problems)
            value = substitute(node, self.env, "extends", self.problems)
            if len(self.problems) > before:
                continue
            for item in value.items if isinstance(value, SeqNode) else (value,):
                if isinstance(item, ScalarNode) and isinstance(item.value, str):
                    yield item
                elif not isinstance(item, ScalarNode) or item.value is not None:
                    what = "extends: a recipe's path or bare name, or a list of them, belongs here"
                    self.problems.append(Problem(what, "write extends: base, say", item.where))

    def _closes_cycle(self, base: Path, where: Where) -> bool:
        files = [os.path.realpath(file) for file, _ in self._chain]
        if (file := os.path.realpath(base)) not in files:
            return False
        links = [str(link) for _, link in self._chain[files.index(file) :]]
        do = " → ".join([*links, _shown(base)])
        self.problems.append(Problem("extends leads back to a file that it came from", do, where))
        return True


def _shown(path: Path) -> str:
    """A file's name in messages: `recipes/NAME.yaml` for a shipped recipe, the shorter of its two paths for another."""
    if shipped_recipes().get(path.stem) == path and not exists(Path("recipes", path.name)):
        return str(Path("recipes", path.name))
    return min(str(path.absolute()), os.path.relpath(path), key=len)


def file_of(shown: str) -> Path:
    """The file that a place in a message means; the inverse of how messages name files."""
    path = Path(shown)
    if path.parts[:-1] == ("recipes",) and not exists(path):
        return shipped_recipes().get(path.stem, path)
    return path


def _emptied(below: Node, above: Node, key: str) -> Iterator[Problem]:
    """Mappings that a key without a value clears, most often because all its lines were commented out."""
    if not isinstance(below, MapNode):
        return
    if isinstance(above, MapNode) and not above.replaces:
        old = {name.name: value for name, value in below.entries}
        for name, value in above.entries:
            if name.name in old:
                yield from _emptied(old[name.name], value, f"{key}.{name.name}" if key else name.name)
    elif isinstance(above, ScalarNode) and above.plain and above.text == "" and below.entries:
        what = f"{key} without a value clears what {below.where} wrote there"
        yield Problem(what, "remove the line to keep it, or write null if that is meant", above.where)


def _without_nulls(tree: MapNode, around: tuple[str, ...], cleared: list[tuple[tuple[str, ...], Where]]) -> MapNode:
    """Drop cleared keys, so that they have their defaults. In lists null stays: they are not merged."""
    entries: list[tuple[KeyNode, Node]] = []
    for key, value in tree.entries:
        path = (*around, key.name)
        if isinstance(value, MapNode):
            entries.append((key, _without_nulls(value, path, cleared)))
        elif isinstance(value, ScalarNode) and value.value is None:
            cleared.append((path, key.where))
        else:
            entries.append((key, value))
    return replace(tree, entries=tuple(entries))
