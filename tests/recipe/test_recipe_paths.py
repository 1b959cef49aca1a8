"""Paths: whose folder a relative one starts from, what is no path, and prompts in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vltool.errors import InvalidInput
from vltool.recipe.schema import Recipe
from vltool.recipe.validate import load_recipe


@pytest.fixture
def sub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder, below the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    return tmp_path / "sub"


def _load(folder: Path, text: str, **options: Any) -> Recipe:
    if "train_jsonl" not in text:
        text += "\ncustom: {train_jsonl: /t}" if "custom:" not in text else "\n  train_jsonl: /t"
    (folder / "r.yaml").write_text(f"global_max_length: 64\n{text}\n")
    return load_recipe(str(folder / "r.yaml"), **{"env": {}, **options})


def test_each_file_s_paths_start_from_its_folder(sub: Path) -> None:
    (sub.parent / "top.yaml").write_text("extends: sub/r.yaml\ncustom: {val_jsonl: val.jsonl}\n")
    _load(sub, "custom:\n  train_jsonl: ../data/train.jsonl\ntraining: {output_dir: out}")
    recipe = load_recipe("top.yaml", env={})
    assert recipe.custom.train_jsonl == str(sub.parent / "data/train.jsonl")
    assert recipe.custom.val_jsonl == str(sub.parent / "val.jsonl")
    assert recipe.training.output_dir == str(sub / "out")


def test_what_the_shell_wrote_starts_from_the_working_directory(sub: Path) -> None:
    text = "custom:\n  train_jsonl: ${D}/t.jsonl\n  val_jsonl: ${V:-v.jsonl}"
    recipe = _load(sub, text, env={"D": "data"})
    assert recipe.custom.train_jsonl == str(sub.parent / "data/t.jsonl")
    assert recipe.custom.val_jsonl == str(sub / "v.jsonl")
    assert _load(sub, text, env={"D": "data"}, cwd=Path("/else")).custom.train_jsonl == "/else/data/t.jsonl"


@pytest.mark.parametrize("key", ["model.model", "rlhf.teacher_model"])
def test_hub_ids_stay_unless_such_a_folder_exists(sub: Path, key: str) -> None:
    section, name = key.split(".")

    def given(value: str) -> str:
        recipe = _load(sub, f"{section}: {{{name}: {value}}}")
        return str(getattr(getattr(recipe, section), name))

    assert given("Qwen/Qwen3-VL-4B-Instruct") == "Qwen/Qwen3-VL-4B-Instruct"
    assert given("./Qwen") == str(sub / "Qwen")
    assert given("../Qwen") == str(sub.parent / "Qwen")
    assert given("/abs/Qwen") == "/abs/Qwen"
    assert given("q" * 5000) == "q" * 5000
    assert given("a/b/c") == str(sub / "a/b/c")
    (sub / "Qwen").mkdir()
    assert given("Qwen") == str(sub / "Qwen")


def test_words_that_are_no_paths_stay(sub: Path) -> None:
    recipe = _load(sub, "deepspeed: {enabled: true, config: zero2}\ntraining: {resume_from_checkpoint: auto}")
    assert recipe.deepspeed.config == "zero2"
    assert recipe.training.resume_from_checkpoint == "auto"
    assert _load(sub, "deepspeed: {config: z.json}").deepspeed.config == str(sub / "z.json")
    assert _load(sub, "deepspeed: {config: ds/z}").deepspeed.config == str(sub / "ds/z")
    assert _load(sub, "training: {resume_from_checkpoint: c}").training.resume_from_checkpoint == str(sub / "c")


def test_home_is_expanded(sub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert _load(sub, "model: {model: ~/m}").model.model == "/home/me/m"
    with pytest.raises(InvalidInput, match=r"r.yaml:2:16: model.model: there is no home folder for ~nobody_here"):
        _load(sub, "model: {model: ~nobody_here/m}")


def test_a_parent_of_a_link_is_not_folded(sub: Path) -> None:
    (sub.parent / "far/data").mkdir(parents=True)
    (sub / "link").symlink_to(sub.parent / "far/data")
    recipe = _load(sub, "custom: {train_jsonl: link/../t.jsonl}")
    assert recipe.custom.train_jsonl is not None
    assert Path(recipe.custom.train_jsonl).resolve() == sub.parent / "far/t.jsonl"


@pytest.mark.parametrize(
    ("written", "read"), [("a\nb\n", "a\nb"), ("a", "a"), ("a\n\n", "a\n"), ("é\r\n", "é"), ("", "")]
)
def test_prompts_come_from_text_files(sub: Path, written: str, read: str) -> None:
    (sub / "p.txt").write_bytes(written.encode())
    recipe = _load(sub, "custom:\n  user_prompt: p.txt\n  system_prompt: Be brief.")
    assert recipe.custom.user_prompt == read
    assert recipe.custom.system_prompt == "Be brief."
    assert _load(sub, "custom:\n  system_prompt: p.txt").custom.system_prompt == read


def test_ms_swifts_own_system_prompt_points_to_ours(sub: Path) -> None:
    (sub / "p.txt").write_text("Be brief.")
    with pytest.raises(InvalidInput) as caught:
        _load(sub, "custom: {train_jsonl: /t}\ntemplate: {system: p.txt}")
    assert str(caught.value) == (
        "sub/r.yaml:3:12: template.system has no effect in a recipe\n  write custom.system_prompt"
    )


def test_prompts_that_cannot_be_read_are_located(sub: Path) -> None:
    with pytest.raises(InvalidInput, match=r"r\.yaml:3:16: custom.user_prompt: .*/sub/p\.txt cannot be read: No such"):
        _load(sub, "custom:\n  user_prompt: p.txt")
    (sub / "p.txt").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match=r"r\.yaml:3:16: custom.user_prompt: .*/sub/p\.txt is not UTF-8 text"):
        _load(sub, "custom:\n  user_prompt: p.txt")


def test_an_empty_path_is_refused_and_an_empty_prompt_is_not(sub: Path) -> None:
    with pytest.raises(InvalidInput, match=r"custom.val_jsonl is an empty text"):
        _load(sub, "custom:\n  val_jsonl: '${V:-}'")
    assert _load(sub, "custom:\n  system_prompt: ''").custom.system_prompt == ""
