"""Paths in a recipe become absolute, from the folder of the file that wrote them; prompts are read from theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vltool.errors import InvalidInput, Problem
from vltool.recipe.load import KeyNode, MapNode, Node, ScalarNode
from vltool.recipe.schema import PATHS

PROMPTS = frozenset({"custom.user_prompt", "custom.system_prompt"})
"""Text, or a .txt file that holds it."""
HUB_IDS = frozenset({"model.model", "rlhf.teacher_model"})
"""A folder, or `owner/name` on a model hub."""


def anchor_paths(tree: MapNode, folders: Mapping[str, Path], cwd: Path, problems: list[Problem]) -> MapNode:
    """The tree with every value of `schema.PATHS` made absolute, and prompts replaced by their files' text.

    folders: file, as places name it -> its folder. cwd: where values begin that a variable wrote.
    """

    def value(section: str, key: str, node: Node) -> Node:
        dotted = f"{section}.{key}"
        if dotted not in PATHS or not isinstance(node, ScalarNode) or not isinstance(node.value, str):
            return node
        folder = cwd if node.from_shell else folders[node.where.file]
        try:
            text = _read(dotted, node.value, folder)
        except InvalidInput as error:
            problems.extend(replace(problem, where=node.where) for problem in error.problems)
            return node
        return node if text == node.value else replace(node, value=text, text=text)

    sections: list[tuple[KeyNode, Node]] = []
    for name, section in tree.entries:
        if isinstance(section, MapNode):
            keys = ((key, value(name.name, key.name, node)) for key, node in section.entries)
            sections.append((name, replace(section, entries=tuple(keys))))
        else:
            sections.append((name, section))
    return replace(tree, entries=tuple(sections))


def _read(key: str, text: str, folder: Path) -> str:
    if key in PROMPTS:
        return read_prompt(key, text, folder)
    if text == "":
        rule = "base-path" if key in HUB_IDS else ""
        do = "name a path; for none write null, or drop the quotes"
        raise InvalidInput(Problem(f"{key} is an empty text", do, id=rule))
    if key == "deepspeed.config" and not (text.endswith(".json") or "/" in text):
        return text
    if key == "training.resume_from_checkpoint" and text == "auto":
        return text
    path = absolute(key, text, folder)
    if key in HUB_IDS and text[0] not in "./~" and text.count("/") <= 1 and not exists(path):
        return text
    return str(path)


def read_prompt(key: str, text: str, folder: Path) -> str:
    """A prompt, read from its file where `text` names one; raises InvalidInput, without a place."""
    return _prompt(key, text, folder) if _names_a_file(text, folder) else text


def _names_a_file(prompt: str, folder: Path) -> bool:
    """Whether a prompt is the name of a file with its text: a sentence that ends in `.txt` is none."""
    if not prompt.endswith(".txt") or "\n" in prompt:
        return False
    return " " not in prompt or exists(folder / prompt)


def absolute(key: str, text: str, folder: Path) -> Path:
    """The path that `text` means in a file of `folder`; raises InvalidInput, without a place."""
    try:
        path = folder / Path(text).expanduser()
    except RuntimeError as error:
        raise InvalidInput(Problem(f"{key}: there is no home folder for {Path(text).parts[0]}")) from error
    return shortest(path)


def shortest(path: Path) -> Path:
    """The path without `..`, unless that would be another: `a/../b` is `b` only where `a` is no link to elsewhere."""
    short = Path(os.path.normpath(path))
    return short if os.path.realpath(short) == os.path.realpath(path) else path


def exists(path: Path) -> bool:
    """Whether something is there; a name that no file can have is not."""
    try:
        return path.exists()
    except OSError:
        return False


def is_link(path: Path) -> bool:
    """Whether a symbolic link is there, to something or nothing."""
    try:
        return path.is_symlink()
    except OSError:
        return False


def _prompt(key: str, text: str, folder: Path) -> str:
    path = absolute(key, text, folder)
    try:
        prompt = path.read_bytes().decode()
    except OSError as error:
        what = f"{key}: {path} cannot be read: {error.strerror}"
        raise InvalidInput(Problem(what, "a value that ends in .txt names a file with the text")) from error
    except UnicodeDecodeError as error:
        raise InvalidInput(Problem(f"{key}: {path} is not UTF-8 text", "save the file as UTF-8")) from error
    return prompt.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")
