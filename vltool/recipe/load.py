"""A YAML file becomes nodes that know their file, line and column; nothing here gives them a meaning.

Recipes are the part of YAML 1.2 that has one reading: mappings, lists and scalars of the core
schema, each written where it is used. Anchors, aliases, merge keys and private tags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vltool.errors import InvalidInput, Problem, Where
from vltool.recipe.scalars import read_plain
from vltool.recipe.schema import Scalar

MAX_DEPTH = 50
"""Mappings and lists inside each other; no recipe needs it, and Python's stack ends somewhere."""


@dataclass(frozen=True, slots=True)
class Node:
    """Anything that was written in a file, with the place where it begins."""

    where: Where


@dataclass(frozen=True, slots=True)
class KeyNode:
    """The key of a mapping's entry."""

    name: str
    where: Where


@dataclass(frozen=True, slots=True)
class MapNode(Node):
    """A mapping, in the order in which it was written; no key stands in it twice."""

    entries: tuple[tuple[KeyNode, Node], ...]
    replaces: bool = False
    """Set by merging: this mapping was put over something that is none, and hides what lies beneath."""

    def find(self, *names: str) -> Node | None:
        """What stands under a name, or under several inside each other; None where nothing does."""
        node: Node | None = self
        for name in names:
            entries = node.entries if isinstance(node, MapNode) else ()
            node = next((value for key, value in entries if key.name == name), None)
        return node


@dataclass(frozen=True, slots=True)
class SeqNode(Node):
    """A list."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class ScalarNode(Node):
    """A value, beside the text that it was read from."""

    value: Scalar
    text: str
    plain: bool
    """Written without quotes, so that YAML's rules and not the writer said what type it has."""
    from_shell: bool = False
    """Begins with the value of an environment variable: whoever set that wrote it, not this file."""


_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "null": type(None)}
_TAG = "tag:yaml.org,2002:"
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that a path or a UTF-8 file cannot hold."""


def load_file(path: Path, *, shown: str | None = None) -> MapNode:
    """Read one file; places carry `shown` as its name, by default the path as given.

    Raises InvalidInput with every problem found: all of them, or the first that ends the parse.
    """
    name = str(path) if shown is None else shown
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(Problem(f"cannot be read: {error.strerror}", where=Where(name))) from error
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode().removeprefix("\ufeff")
        what = f"not UTF-8 text: byte 0x{data[error.start]:02x}"
        raise InvalidInput(Problem(what, "save the file as UTF-8", _place(name, before))) from error
    return _Composer(name, text).document()


def _place(file: str, before: str) -> Where:
    """The place that follows the text `before`."""
    return Where(file, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


class _Composer:
    """Builds nodes from the parser's events, and gathers problems instead of stopping at the first."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text = file, text
        self.problems: list[Problem] = []
        self.events = self._parse()
        self.last = Where(file, 1, 1)

    def document(self) -> MapNode:
        top: Node = MapNode(Where(self.file, 1, 1), ())
        documents = 0
        for event in self.events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                documents += 1
                if documents == 2:
                    self._problem("a second document begins here", "a recipe is one document: remove the `---`", event)
            elif kind not in ("StreamStartEvent", "StreamEndEvent", "DocumentEndEvent"):
                node = self._node(event, "", 0)
                if documents == 1 and not (isinstance(node, ScalarNode) and node.plain and node.text == ""):
                    top = node
        if not isinstance(top, MapNode):
            found = "a list" if isinstance(top, SeqNode) else "a single value"
            self.problems.append(Problem(f"the file holds {found}", "a recipe is a mapping of sections", top.where))
        if self.problems:
            raise InvalidInput(self.problems)
        assert isinstance(top, MapNode)
        return top

    def _parse(self) -> Iterator[Any]:
        # Imported here because `--help` and completion list recipes without reading any.
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError
        from ruamel.yaml.reader import ReaderError

        try:
            yield from YAML(typ="safe", pure=True).parse(self.text)
        except MarkedYAMLError as error:
            raise InvalidInput([*self.problems, self._syntax(error)]) from error
        except ReaderError as error:
            where = _place(self.file, self.text[: error.position])
            what = f"the character {self.text[error.position]!a} cannot stand in YAML"
            raise InvalidInput([*self.problems, Problem(what, "remove it", where)]) from error
        except (YAMLError, ValueError, IndexError) as error:
            # ruamel lets Python's own errors out, for escapes beyond Unicode ("\U00110000") for example.
            what = "not YAML: a character escape or directive soon after this place makes no sense"
            raise InvalidInput([*self.problems, Problem(what, where=self.last)]) from error

    def _syntax(self, error: Any) -> Problem:
        """What the parser met, in the words of someone who writes recipes."""
        problem, context = error.problem or str(error), error.context or ""
        mark = error.problem_mark or error.context_mark
        where = Where(self.file, mark.line + 1, mark.column + 1) if mark else self.last
        if "flow node" in context and "<stream end>" in problem:
            at = max(self.text.rfind("[", 0, mark.index), self.text.rfind("{", 0, mark.index))
            opened = _place(self.file, self.text[:at])
            return Problem("the bracket that begins here never ends", "close it", opened)
        begun = error.context_mark
        if begun and ("end of stream" in problem or "<stream end>" in problem):
            what = "quote" if "quoted scalar" in context else "bracket" if "flow" in context else ""
            if what:
                opened = Where(self.file, begun.line + 1, begun.column + 1)
                return Problem(f"the {what} that begins here never ends", "close it", opened)
        if "'\\t'" in problem:
            return Problem("a tab where YAML wants spaces", "indent with spaces", where)
        if "mapping values are not allowed" in problem:
            return Problem(
                "a second `: ` in one line", "quote a value that holds `: `, or check the indentation", where
            )
        if mark and self.text[: mark.index].endswith("$") and problem.endswith("'{'"):
            return Problem("a variable without quotes inside { } or [ ]", "write '${NAME}' in quotes here", where)
        for number, line in enumerate(self.text.splitlines(), 1):
            if line.startswith(("<<<<<<< ", ">>>>>>> ")):
                return Problem("a merge conflict was left here", "choose one side", Where(self.file, number, 1))
        return Problem(f"not YAML: {problem}", "check quotes, brackets and indentation here and just above", where)

    def _where(self, event: Any) -> Where:
        self.last = Where(self.file, event.start_mark.line + 1, event.start_mark.column + 1)
        return self.last

    def _problem(self, what: str, do: str, event: Any) -> None:
        self.problems.append(Problem(what, do, self._where(event)))

    def _node(self, event: Any, key: str, depth: int) -> Node:
        """The node that `event` begins; takes the rest of its events."""
        where = self._where(event)
        if depth > MAX_DEPTH:
            what = f"more than {MAX_DEPTH} mappings and lists inside each other"
            raise InvalidInput([*self.problems, Problem(what, where=where)])
        kind = type(event).__name__
        if kind == "AliasEvent":
            do = "write the value out, or use `extends`; a text that begins with * needs quotes"
            self._problem(f"alias *{event.anchor}", do, event)
            return ScalarNode(where, None, "", plain=False)
        if event.anchor is not None:
            do = "write the value out, or use `extends`; a text that begins with & needs quotes"
            self._problem(f"anchor &{event.anchor}", do, event)
        if kind == "ScalarEvent":
            return self._scalar(event, where)
        if kind == "SequenceStartEvent":
            self._collection_tag(event, "seq")
            items: list[Node] = []
            while type(item := next(self.events)).__name__ != "SequenceEndEvent":
                items.append(self._node(item, f"{key}[{len(items)}]", depth + 1))
            return SeqNode(where, tuple(items))
        self._collection_tag(event, "map")
        entries: dict[str, tuple[KeyNode, Node]] = {}
        while type(item := next(self.events)).__name__ != "MappingEndEvent":
            name = self._key(item, depth)
            dotted = f"{key}.{name.name}" if key else name.name
            value = self._node(next(self.events), dotted, depth + 1)
            if isinstance(value, ScalarNode) and value.plain and value.text == "":
                # The parser puts a missing value where the next token is, lines further down.
                value = replace(value, where=name.where)
            if name.name in entries and name.name:
                first = entries[name.name][0].where
                self.problems.append(Problem(f"duplicate key {dotted}", f"first written at {first}", name.where))
            entries.setdefault(name.name, (name, value))
        return MapNode(where, tuple(entries.values()))

    def _key(self, event: Any, depth: int) -> KeyNode:
        where = self._where(event)
        before = len(self.problems)
        node = self._node(event, "", depth + 1)
        if isinstance(node, ScalarNode) and len(self.problems) == before:
            if node.plain and node.text == "<<":
                self._problem("merge key <<", "write the keys out, or use `extends`", event)
            elif isinstance(node.value, str):
                return KeyNode(node.value, where)
            elif node.plain and not node.text:
                self._problem("a colon without a key", "write the key before it", event)
            else:
                self._problem(f"the key {node.text or 'null'} is no text", "put it in quotes", event)
        elif len(self.problems) == before:
            do = "keys are text; a text that begins with { or [ needs quotes"
            self._problem("a key that is a list or a mapping", do, event)
        return KeyNode("", where)

    def _collection_tag(self, event: Any, expected: str) -> None:
        if event.tag is not None and event.tag != _TAG + expected:
            self._problem(f"unknown tag {_short(event.tag)}", "remove it: recipes hold plain data", event)

    def _scalar(self, event: Any, where: Where) -> ScalarNode:
        # JSON writes characters beyond the basic plane as two escapes, which YAML reads as two characters.
        text: str = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), event.value)
        if bad := UNUSABLE.search(text):
            self._problem(f"the character {bad.group()!a} cannot be used in text", "remove it", event)
        tag = None if event.tag is None else str(event.tag).removeprefix(_TAG)
        plain = event.style is None and tag is None
        if tag is not None and tag not in _TYPES:
            self._problem(f"unknown tag {_short(event.tag)}", "remove it: recipes hold plain data", event)
        elif plain or tag not in (None, "str"):
            value = read_plain(text)
            if tag == "float" and isinstance(value, int):
                value = float(value)
            if tag is not None and type(value) is not _TYPES[tag]:
                self._problem(f"{text!r} is no {tag}", "remove the tag", event)
            return ScalarNode(where, value, text, plain)
        return ScalarNode(where, text, text, plain)


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")
