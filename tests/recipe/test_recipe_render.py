"""A rendered recipe: one document, each line with its origin, that resolves to the same recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from planning import WHOLE

from vltool.recipe.load import load_file
from vltool.recipe.render import WIDTH, to_yaml
from vltool.recipe.resolve import file_of
from vltool.recipe.schema import OWN, Recipe
from vltool.recipe.validate import load_recipe

ENV = {
    "VLTOOL_MODEL": "/models/Qwen3 VL #4", "VLTOOL_TRAIN_JSONL": "/data/train.jsonl",
    "VLTOOL_VAL_JSONL": "/data/${val}.jsonl", "VLTOOL_STAGE1": "/runs/stage1", "VLTOOL_STAGE2": "/runs/true",
}  # fmt: skip
MINIMAL: dict[str, Any] = {"global_max_length": 64, "model": {"model": "/m"}, "custom": {"train_jsonl": "/t.jsonl"}}
LEAF = re.compile(r"(.*\S) +# (.+):(\d+):(\d+)")
"""A line that ends with its origin."""
SHORT = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _written(document: dict[str, Any]) -> str:
    """JSON, which is YAML but for two things: characters beyond 16 bits, and infinity."""

    def astral(match: re.Match[str]) -> str:
        high, low = (int(half, 16) for half in match.groups())
        return f"\\U{0x10000 + ((high & 0x3FF) << 10) + (low & 0x3FF):08x}"

    pairs = re.compile(r"\\\\|\\u(d[89ab]..)\\u(d[c-f]..)")
    text = pairs.sub(lambda match: astral(match) if match[1] else match[0], json.dumps(document))
    return re.sub(r"(?<=[ \[])(-?)Infinity(?=[,}\]])", r"\1.inf", text)


def _load(document: dict[str, Any] | str, name: str = "written.yaml") -> Recipe:
    """A recipe of a text, or of a document whose texts all go through JSON's escapes."""
    text = document if isinstance(document, str) else _written(document)
    Path(name).write_text(text, encoding="utf-8")
    return load_recipe(name, env={})


def _again(recipe: Recipe) -> Recipe:
    """The recipe that the rendered one resolves to, where no variable is set."""
    again = _load(to_yaml(recipe), "rendered.yaml")
    assert again.global_max_length == recipe.global_max_length
    for section in OWN:
        assert getattr(again, section) == getattr(recipe, section), section
    assert again.swift == recipe.swift
    assert [note.what for note in again.notes] == [note.what for note in recipe.notes]
    return again


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("overlays", [(), ("smoke",)], ids=["whole", "smoke"])
def test_a_shipped_recipe_resolves_to_itself(name: str, overlays: tuple[str, ...]) -> None:
    recipe = load_recipe(name, overlays=overlays, env=ENV)
    again = _again(recipe)
    assert re.sub("#.*", "", to_yaml(again)) == re.sub("#.*", "", to_yaml(recipe)), "once more changes nothing"


@pytest.mark.parametrize("name", WHOLE)
def test_each_line_names_the_line_that_wrote_it(name: str) -> None:
    recipe = load_recipe(name, env=ENV)
    lines = re.sub(r"\\\n *", "", to_yaml(recipe)).splitlines()
    leaves = [leaf for line in lines if (leaf := LEAF.fullmatch(line))]
    assert len(leaves) > 30
    assert all(line.endswith(":") for line in lines if not LEAF.fullmatch(line))
    for line in leaves:
        written, file, number, column = line.groups()
        key = written.strip().split(":")[0]
        source = file_of(file).read_text().splitlines()[int(number) - 1]
        assert key in source or source.strip().startswith("Find every object"), (line, source)
        assert source[int(column) - 1] != " "
    texts = " ".join(line[0] for line in leaves)
    assert "base.yaml:" in texts
    if name != "base":
        assert f"/{name}.yaml:" in texts


def test_the_form_of_a_rendered_recipe() -> None:
    recipe = _load(
        "template: {max_length: 64}\n"
        "model: {model: /m}\n"
        "training:\n  gradient_checkpointing_kwargs: {power: 1e-6, note: 'true', some: [1, a, {b: null}]}\n"
        "  label_names: [a, 'true']\n"
        'custom:\n  train_jsonl: /t.jsonl\n  user_prompt: |\n    two\n    lines: "#"\n'
        "launch:\n  env: {A: '1'}\n"
    )
    assert to_yaml(recipe) == (
        "global_max_length: 64                 # written.yaml:1:24\n"
        "model:\n"
        "  model: /m                           # written.yaml:2:16\n"
        "training:\n"
        "  gradient_checkpointing_kwargs:\n"
        "    power: 1.0e-06                    # written.yaml:4:42\n"
        '    note: "true"                      # written.yaml:4:54\n'
        "    some: [1, a, {b: null}]           # written.yaml:4:62\n"
        '  label_names: [a, "true"]            # written.yaml:5:3\n'
        "launch:\n"
        "  env:\n"
        '    A: "1"                            # written.yaml:12:12\n'
        "custom:\n"
        "  train_jsonl: /t.jsonl               # written.yaml:7:16\n"
        '  user_prompt: "two\\nlines: \\"#\\"\\n"  # written.yaml:8:16\n'
    )
    _again(recipe)


def test_defaults_stay_defaults() -> None:
    text = to_yaml(_load(MINIMAL))
    assert re.sub(" +#.*", "", text) == (
        "global_max_length: 64\nmodel:\n  model: /m\ncustom:\n  train_jsonl: /t.jsonl\n"
    )


NASTY = [
    "", " ", "true", "True", "null", "~", "1e-4", "1_000", "0x1f", ".nan", "-", "- a", "? b", "a: b", "a #b", "#", "%a",
    "'", '"', "\\", "\\n", "''", "a'b\"c", "${HOME}", "$${HOME}", "$$${", "${", "$", "{}", "[]", "*a", "&a", "!a", "|",
    ">", "  leading", "trailing  ", "\ttab", "a\n\nb\n", "\r", "a\r\nb", "\u2028", "a\u2029b", "\x85", "\x7f", "\x9f",
    "\x1b[0m", "\ufeff", "\ufffe", "\uffff", "\U0001fffe", "🦀", "e\u0301", "\u200b", "---", "...", "a\n---\nb",
    "<<", "=", "no", "a.txt\n",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_nasty_texts_come_back(text: str) -> None:
    # `escape` writes `$${`, so that this is a text and no variable.
    document = MINIMAL | {
        "custom": {"train_jsonl": "/t.jsonl", "user_prompt": text.replace("${", "$${")},
        "training": {
            "label_names": [text.replace("${", "$${")],
            "gradient_checkpointing_kwargs": {
                "listed": [text.replace("${", "$${"), {"inner": text.replace("${", "$${")}]
            },
        },
        "launch": {"env": {"A": text.replace("${", "$${")}},
    }
    recipe = _load(document)
    assert recipe.custom.user_prompt == text
    assert recipe.launch.env == {"A": text}
    assert recipe.swift["training"] == {
        "label_names": [text],
        "gradient_checkpointing_kwargs": {"listed": [text, {"inner": text}]},
    }
    _again(recipe)


LONG = "/a-folder" * 20
WORDY = 'of many words, "quoted" too,  with two spaces ' * 9


@pytest.mark.parametrize("text", [LONG, WORDY, f"{LONG} {WORDY}", " " * 300, "é" * 300, f"{' ' * 150}x", WORDY + "\n"])
@pytest.mark.parametrize("key", ["run_name", "two words and a long key " * 8])
def test_long_texts_are_broken_and_come_back(text: str, key: str) -> None:
    kwargs = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {key: text}, "run_name": text}
    recipe = _load(MINIMAL | {"training": kwargs})
    _again(recipe)
    if text.startswith(WORDY) and key == "run_name":
        assert max(map(len, to_yaml(recipe, provenance=False).splitlines())) <= WIDTH


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30) | st.lists(
    st.sampled_from(NASTY), max_size=4
).map("".join)


@given(text=TEXTS.filter(lambda text: not text.endswith(".txt")))
@SHORT
def test_any_prompt_comes_back(text: str) -> None:
    recipe = _load(MINIMAL | {"custom": {"train_jsonl": "/t", "user_prompt": text.replace("${", "$${")}})
    assert recipe.custom.user_prompt == text
    assert _again(recipe).custom.user_prompt == text


NAMES = st.from_regex("[A-Za-z_][A-Za-z0-9_]*", fullmatch=True)


@given(env=st.dictionaries(NAMES, TEXTS.map(lambda text: text.replace("{", "")), max_size=3))
@example(env={"A_B": "1", "A": "2", "_": "3", "null": "4", "true": "true"})
@SHORT
def test_any_environment_comes_back(env: dict[str, str]) -> None:
    recipe = _load(MINIMAL | {"launch": {"env": env}})
    assert recipe.launch.env == env
    assert _again(recipe).launch.env == env


PLAIN = st.recursive(
    st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def _escaped(value: Any) -> Any:
    """The value as it has to be written, so that its texts hold no variables."""
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


@given(value=PLAIN)
@SHORT
def test_any_value_of_ms_swifts_comes_back(value: Any) -> None:
    recipe = _load(MINIMAL | {"training": {"gradient_checkpointing_kwargs": {"anything": _escaped(value)}}})
    assert recipe.swift["training"] == {"gradient_checkpointing_kwargs": {"anything": value}}
    _again(recipe)


@pytest.mark.parametrize(
    "line",
    [
        "deepspeed: {config: {}}", "custom: {visual_kd: {}}",
        "custom: {augmentation: {ops: []}}", "custom: {augmentation: {ops: [{name: hflip, params: {}}]}}",
        "launch: {env: {}}", "training: {lr_scheduler_kwargs: {}}", "template: {max_length: 64}",
        "rlhf: {rlhf_type: gkd, beta: 1, eval_kd_batches: all}",
        "tuner: {target_modules: [], modules_to_save: [lm_head]}",
        "deepspeed: {enabled: true, config: {}}", "custom: {visual_kd: {vit: {weight: 0.5}}}",
        "training: {output_dir: .}",
        "deepspeed: {config: zero2}", "training: {resume_from_checkpoint: auto}", "tuner: {train_type: full}",
    ],
)  # fmt: skip
def test_empty_odd_and_renamed_values_come_back(line: str) -> None:
    section, _, rest = line.partition(": ")
    lines = {"model": "model: {model: /m}", "custom": "custom: {train_jsonl: /t.jsonl}"}
    lines[section] = f"{lines[section][:-1]}, {rest[1:]}" if section in lines else line
    recipe = _load("global_max_length: 64\n" + "\n".join(lines.values()) + "\n")
    text = to_yaml(recipe)
    again = _load(text, "rendered.yaml")
    assert repr({name: getattr(again, name) for name in OWN}) == repr({name: getattr(recipe, name) for name in OWN})
    assert repr(again.swift) == repr(recipe.swift)


def test_paths_are_absolute_and_prompts_are_read_in() -> None:
    Path("deeper").mkdir()
    Path("deeper/prompt.txt").write_text("Say “what”.\n")
    Path("deeper/model").mkdir()
    Path("deeper/mine.yaml").write_text(
        "global_max_length: 64\nmodel: {model: ./model}\n"
        "custom: {train_jsonl: ../t.jsonl, user_prompt: prompt.txt}\ntraining: {output_dir: run}\n"
    )
    recipe = load_recipe("deeper/mine.yaml", env={})
    again = _again(recipe)
    assert again.model.model == str(Path.cwd() / "deeper" / "model")
    assert again.custom.user_prompt == "Say “what”."
    assert "  # deeper/mine.yaml:3:48" in to_yaml(recipe)


@pytest.mark.parametrize(
    "name", ["a\nb.yaml", "a\u2028b.yaml", "a\x85b #c.yaml", "ü: {x}.yaml", "\udcff.yaml"], ids=ascii
)
def test_a_file_with_an_odd_name_spoils_no_line(name: str) -> None:
    Path(name).write_text(json.dumps(MINIMAL))
    text = to_yaml(load_recipe(name, env={}))
    assert "# " in text
    Path("rendered.yaml").write_bytes(text.encode())
    assert len(load_file(Path("rendered.yaml")).entries) == 3
    assert _load(text, "rendered.yaml").custom.train_jsonl == "/t.jsonl"
