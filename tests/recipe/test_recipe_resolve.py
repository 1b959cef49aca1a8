"""Resolving: which file's value holds, where it came from, and what a broken chain says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vltool.errors import InvalidInput, Where
from vltool.recipe.load import KeyNode, MapNode, Node, ScalarNode, SeqNode
from vltool.recipe.resolve import Resolved, file_of, find_recipe, merge, resolve, shipped_recipes


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _write(**files: str) -> None:
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)


def _plain(node: Node) -> Any:
    if isinstance(node, MapNode):
        return {key.name: _plain(value) for key, value in node.entries}
    if isinstance(node, SeqNode):
        return [_plain(item) for item in node.items]
    assert isinstance(node, ScalarNode)
    return node.value


def _where(resolved: Resolved, *keys: str) -> str:
    node: Node = resolved.tree
    for key in keys:
        assert isinstance(node, MapNode)
        node = {name.name: value for name, value in node.entries}[key]
    return str(node.where)


def _message(recipe: str, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        resolve(recipe, **{"env": {}, **options})
    return str(caught.value)


def test_the_later_wins_from_base_config_to_overlay() -> None:
    _write(
        under="t: {a: under, b: under, c: under, d: under, e: under, f: under}",
        one="t: {b: one, c: one, d: one, e: one, f: one}",
        two="t: {c: two, d: two, e: two, f: two}",
        deep="extends: two.yaml\nt: {d: deep, e: deep, f: deep}",
        own="extends: [one.yaml, deep.yaml]\nt: {e: own, f: own}",
        over="t: {f: over}",
    )
    resolved = resolve("own.yaml", base_config="under.yaml", overlays=["over.yaml"], env={})
    assert _plain(resolved.tree) == {"t": {"a": "under", "b": "one", "c": "two", "d": "deep", "e": "own", "f": "over"}}
    assert resolved.files == ("under.yaml", "one.yaml", "two.yaml", "deep.yaml", "own.yaml", "over.yaml")
    assert (resolved.name, resolved.file) == ("own", "own.yaml")
    assert _where(resolved, "t", "d") == "deep.yaml:2:8"


def test_mappings_merge_lists_and_scalars_replace_null_clears() -> None:
    _write(
        base="m: {x: {a: 1, b: 2}, l: [1, 2], s: 1, gone: {y: 1}}",
        own="extends: base.yaml\nm: {x: {b: 3, c: 4}, l: [3], s: {z: 1}, gone: null}",
    )
    assert _plain(resolve("own.yaml", env={}).tree) == {"m": {"x": {"a": 1, "b": 3, "c": 4}, "l": [3], "s": {"z": 1}}}


def test_what_was_cleared_can_be_written_anew() -> None:
    _write(base="m: {a: 1}", middle="extends: base.yaml\nm: null", own="extends: middle.yaml\nm: {b: 2}")
    assert _plain(resolve("own.yaml", env={}).tree) == {"m": {"b": 2}}


def test_a_key_whose_lines_were_commented_out_is_noted() -> None:
    _write(base="custom:\n  x: 1", own="extends: base.yaml\ncustom:\n#  x: 2")
    (note,) = resolve("own.yaml", env={}).notes
    assert str(note).startswith("own.yaml:2:1: custom without a value clears what base.yaml:2:3 wrote there")
    _write(own="extends: base.yaml\ncustom: null")
    assert resolve("own.yaml", env={}).notes == ()


def test_relative_extends_start_from_their_file() -> None:
    Path("sub").mkdir()
    _write(**{"sub/base": "a: 1", "sub/own": "extends: base.yaml", "top": "extends: ./sub/own.yaml"})
    resolved = resolve("top.yaml", env={})
    assert resolved.files == ("sub/base.yaml", "sub/own.yaml", "top.yaml")
    assert resolved.folders["sub/base.yaml"] == Path("sub").absolute()


def test_extends_reads_variables() -> None:
    Path("sub").mkdir()
    _write(**{"base": "a: 1", "sub/own": "extends: ${BASE}", "sub/none": "extends: ${BASE:-}\nb: 1"})
    assert _plain(resolve("sub/own.yaml", env={"BASE": "base.yaml"}).tree) == {"a": 1}
    assert _plain(resolve("sub/none.yaml", env={}).tree) == {"b": 1}
    assert _message("sub/own.yaml").startswith("sub/own.yaml:1:10: extends: the environment variable BASE is not set")


def test_only_values_that_hold_need_their_variables() -> None:
    _write(base="a: ${UNSET}\nb: ${SET}", own="extends: base.yaml\na: 1")
    assert _plain(resolve("own.yaml", env={"SET": "2"}).tree) == {"a": 1, "b": 2}
    assert _message("own.yaml").startswith("base.yaml:2:4: b: the environment variable SET is not set")


def test_an_empty_variable_clears() -> None:
    _write(own="a: ${X:-}\nb: '${X:-}'")
    assert _plain(resolve("own.yaml", env={}).tree) == {"b": ""}


def test_a_cycle_shows_its_chain() -> None:
    _write(a="extends: b.yaml", b="x: 1\nextends: [c.yaml]", c="extends: b.yaml")
    assert _message("a.yaml") == (
        "c.yaml:1:10: extends leads back to a file that it came from\n  b.yaml:2:11 → c.yaml:1:10 → b.yaml"
    )
    _write(self="extends: self.yaml")
    assert "self.yaml:1:10 → self.yaml" in _message("self.yaml")


def test_a_base_may_be_reached_twice() -> None:
    _write(
        base="a: base", one="extends: base.yaml\na: one", two="extends: base.yaml", own="extends: [two.yaml, one.yaml]"
    )
    assert _plain(resolve("own.yaml", env={}).tree) == {"a": "one"}


def test_recipes_over_one_base_do_not_undo_each_other() -> None:
    _write(
        base="t: {a: base, b: base, c: base}",
        one="extends: base.yaml\nt: {a: one}",
        two="extends: base.yaml\nt: {b: two}",
        own="extends: [one.yaml, two.yaml]",
        turned="extends: [two.yaml, one.yaml]",
        deep="extends: [own.yaml, two.yaml, turned.yaml]\nt: {c: deep}",
    )
    changed = {"t": {"a": "one", "b": "two", "c": "base"}}
    for name, files in {"own": ["base", "one", "two", "own"], "turned": ["base", "two", "one", "turned"]}.items():
        resolved = resolve(f"{name}.yaml", env={})
        assert _plain(resolved.tree) == changed
        assert resolved.files == tuple(f"{file}.yaml" for file in files)
        assert resolved.notes == ()
    assert _plain(resolve("one.yaml", overlays=["two.yaml"], env={}).tree) == changed
    assert _plain(resolve("two.yaml", overlays=["one.yaml", "two.yaml"], env={}).tree) == changed
    deep = resolve("deep.yaml", env={})
    assert _plain(deep.tree) == {"t": {"a": "one", "b": "two", "c": "deep"}}
    assert deep.files == ("base.yaml", "one.yaml", "two.yaml", "own.yaml", "turned.yaml", "deep.yaml")


def test_an_overlay_of_which_the_recipe_is_made_is_merged_where_it_was_reached_first() -> None:
    _write(base="a: base", one="extends: base.yaml\na: one", two="b: two")
    resolved = resolve("one.yaml", overlays=["two.yaml", "base.yaml"], env={})
    assert _plain(resolved.tree) == {"a": "one", "b": "two"}
    assert resolved.files == ("base.yaml", "one.yaml", "two.yaml")


def test_a_base_that_is_listed_again_is_noted_and_undoes_nothing() -> None:
    _write(base="a: base", one="extends: base.yaml\na: one", own="b: 1\nextends: [one.yaml, base.yaml]")
    resolved = resolve("own.yaml", env={})
    assert _plain(resolved.tree) == {"a": "one", "b": 1}
    (note,) = resolved.notes
    assert str(note) == (
        "own.yaml:2:21: extends: base.yaml lies beneath the recipes before it already, and is not merged again\n"
        "  take it out of the list"
    )
    _write(own="extends: [base.yaml, one.yaml]")
    assert resolve("own.yaml", env={}).notes == ()
    _write(own="extends: [one.yaml, one.yaml]")
    assert len(resolve("own.yaml", env={}).notes) == 1


def test_the_base_config_lies_under_everything_even_where_the_recipe_has_it_too() -> None:
    _write(
        base="a: base\nb: base\nc: base",
        other="extends: base.yaml\nb: other\nd: other",
        one="extends: base.yaml\na: one",
    )
    resolved = resolve("one.yaml", base_config="base.yaml", env={})
    assert _plain(resolved.tree) == {"a": "one", "b": "base", "c": "base"}
    assert resolved.files == ("base.yaml", "one.yaml")
    _write(two="extends: base.yaml\nb: two", both="extends: [one.yaml, two.yaml]", last="c: last")
    resolved = resolve("last.yaml", base_config="both.yaml", env={})
    assert _plain(resolved.tree) == {"a": "one", "b": "two", "c": "last"}
    resolved = resolve("one.yaml", base_config="other.yaml", env={})
    assert _plain(resolved.tree) == {"a": "one", "b": "base", "c": "base", "d": "other"}
    assert resolved.files == ("base.yaml", "other.yaml", "one.yaml")
    assert resolved.notes == ()


def test_the_same_name_in_two_folders_is_two_files() -> None:
    Path("sub").mkdir()
    _write(**{"base": "a: 1", "sub/base": "b: 2", "sub/one": "extends: base.yaml"})
    _write(own="extends: [base.yaml, sub/one.yaml]")
    resolved = resolve("own.yaml", env={})
    assert _plain(resolved.tree) == {"a": 1, "b": 2}
    assert resolved.notes == ()
    assert resolved.files == ("base.yaml", "sub/base.yaml", "sub/one.yaml", "own.yaml")


DATA = {"VLTOOL_MODEL": "m", "VLTOOL_TRAIN_JSONL": "t"}


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_messages_name_a_shipped_recipe_as_a_file_of_recipes(name: str) -> None:
    resolved = resolve(name, env=DATA)
    assert resolved.file == f"recipes/{name}.yaml"
    assert set(resolved.files) <= {f"recipes/{other}.yaml" for other in shipped_recipes()}
    for file in resolved.files:
        assert file_of(file) == shipped_recipes()[Path(file).stem]
        assert resolved.folders[file] == shipped_recipes()[name].parent


def test_a_file_of_that_name_here_is_the_one_that_messages_mean(tmp_path: Path) -> None:
    Path("recipes").mkdir()
    _write(**{"recipes/base": "a: here", "own": "extends: [recipes/base.yaml, base]"})
    resolved = resolve("own.yaml", env=DATA)
    here, shipped, own = resolved.files
    assert (here, own) == ("recipes/base.yaml", "own.yaml")
    assert (file_of(here), file_of(own)) == (Path("recipes/base.yaml"), Path("own.yaml"))
    assert shipped != here
    assert file_of(shipped).samefile(shipped_recipes()["base"])
    assert _where(resolved, "a") == "recipes/base.yaml:1:4"
    assert _where(resolved, "global_max_length").startswith(f"{shipped}:")


@pytest.mark.parametrize(
    "shown", ["recipes/nobody.yaml", "gone.yaml", "/abs/base.yaml", "base.yaml", "x/recipes/a.yaml"]
)
def test_another_name_means_itself(shown: str) -> None:
    assert file_of(shown) == Path(shown)


def test_places_lead_back_to_their_lines() -> None:
    _write(own="extends: stage3\nt: 1")
    resolved = resolve("own.yaml", env=DATA)
    file, line, column = _where(resolved, "tuner", "lora_rank").rsplit(":", 2)
    assert file == "recipes/base.yaml"
    source = file_of(file).read_text().splitlines()[int(line) - 1]
    assert source[: int(column) - 1].strip() == "lora_rank:"


def test_problems_of_all_files_are_told_at_once() -> None:
    _write(a="extends: [b.yaml, gone.yaml]\nx: 1\nx: 2", b="y: [1", c="extends: 5")
    message = _message("a.yaml", base_config="c.yaml", overlays=["nowhere.yaml"])
    heads = [line for line in message.splitlines() if not line.startswith(" ")]
    assert heads == [
        "no recipe nowhere.yaml",
        "c.yaml:1:10: extends: a recipe's path or bare name, or a list of them, belongs here",
        "a.yaml:3:1: duplicate key x",
    ]
    _write(a="extends: [b.yaml, gone.yaml]\nx: 1")
    heads = [line for line in _message("a.yaml").splitlines() if not line.startswith(" ")]
    assert heads == [
        "b.yaml:1:4: the bracket that begins here never ends",
        "a.yaml:1:19: no recipe gone.yaml",
    ]


def test_shipped_recipes_are_found_by_bare_name() -> None:
    assert find_recipe("stage3") == (shipped_recipes()["stage3"], None)
    _write(own="extends: base")
    assert Path(resolve("own.yaml", env={"VLTOOL_MODEL": "m", "VLTOOL_TRAIN_JSONL": "t"}).files[0]).name == "base.yaml"


def test_a_missing_recipes_file_is_the_shipped_one_with_a_note() -> None:
    path, note = find_recipe("recipes/stage3.yaml")
    assert path == shipped_recipes()["stage3"]
    assert str(note) == "no file recipes/stage3.yaml here: the shipped recipe stage3 is used"
    _write(own="a: 1\nextends: recipes/base.yaml")
    (note,) = resolve("own.yaml", env={"VLTOOL_MODEL": "m", "VLTOOL_TRAIN_JSONL": "t"}).notes
    assert note.where == Where("own.yaml", 2, 10)
    Path("recipes").mkdir()
    Path("recipes/stage3.yaml").write_text("a: 1")
    assert find_recipe("recipes/stage3.yaml") == (Path("recipes/stage3.yaml"), None)


SHIPPED = f"shipped recipes: {', '.join(shipped_recipes())}"


@pytest.mark.parametrize(
    ("name", "do"),
    [
        ("stage3_gdk", "did you mean stage3_gkd?"),
        ("configs/stage3.yaml", "did you mean stage3?"),
        ("mine", "did you mean mine.yaml?"),
        ("sub/theirz.yaml", "did you mean sub/theirs.yaml?"),
        ("qqqq", SHIPPED),
        ("q" * 5000, SHIPPED),
        ("sub", SHIPPED),
    ],
)
def test_a_wrong_name_gets_the_nearest(name: str, do: str) -> None:
    Path("sub").mkdir()
    _write(**{"mine": "", "sub/theirs": ""})
    with pytest.raises(InvalidInput) as caught:
        find_recipe(name)
    assert caught.value.problems[0].do.startswith(do)


NAMES = st.sampled_from(["a", "b", "c"])
SCALARS = st.sampled_from([None, 1, 2, "x"])
TREES = st.recursive(
    st.dictionaries(NAMES, SCALARS | st.lists(SCALARS, max_size=2), max_size=3),
    lambda inner: st.dictionaries(NAMES, SCALARS | inner, max_size=3),
    max_leaves=8,
)


def _node(value: Any) -> Node:
    here = Where("x")
    if isinstance(value, dict):
        return MapNode(here, tuple((KeyNode(key, here), _node(inner)) for key, inner in value.items()))
    if isinstance(value, list):
        return SeqNode(here, tuple(map(_node, value)))
    return ScalarNode(here, value, str(value), plain=True)


@given(TREES, TREES, TREES)
def test_merging_is_associative(one: Any, two: Any, three: Any) -> None:
    a, b, c = _node(one), _node(two), _node(three)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(TREES)
def test_merging_with_nothing_or_itself_changes_nothing(one: Any) -> None:
    tree = _node(one)
    assert merge(_node({}), tree) == merge(tree, _node({})) == merge(tree, tree) == tree


@given(TREES, NAMES)
def test_null_clears_whatever_was_there(one: Any, name: str) -> None:
    merged = merge(_node(one), _node({name: None}))
    assert _plain(merged)[name] is None
    assert {key: value for key, value in _plain(merged).items() if key != name} == {
        key: value for key, value in one.items() if key != name
    }
