"""Broken recipes: each file under tests/recipes_bad says in its first lines what has to be found in it.

A case is one YAML file, or a folder with a `recipe.yaml` and what that extends. Its expectations:

    #! LINE:COLUMN message part | remedy part      a problem in this file, at exactly this place
    #! FILE:LINE:COLUMN message part               a problem in another file of the case
    #! - message part                              a problem without a place
    #? LINE:COLUMN message part                    a note: the recipe is valid
    #= why                                         the recipe is valid, and there is nothing to say
    #$ NAME=value                                  an environment variable

Files that hold no comments have them beside them, in a file that ends in `.expect`. Parts may be left
out at the end; nothing but what is expected may be found.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vltool.cli.app import app
from vltool.errors import InvalidInput, Problem
from vltool.recipe.validate import load_recipe

CORPUS = Path(__file__).parents[1] / "recipes_bad"
RECORDS = {"VLTOOL_MODEL": "/models/student", "VLTOOL_TRAIN_JSONL": "/data/train.jsonl"}
"""What the shipped recipes need."""
FEWEST = 60
_PLACE = re.compile(r"(?:(?P<file>[^:\s]+):)?(?P<line>\d+):(?P<column>\d+)")


@dataclass(frozen=True)
class Expected:
    """A finding that has to be there."""

    file: str | None
    line: int | None
    column: int | None
    what: str
    do: str

    @staticmethod
    def parse(text: str, recipe: str) -> Expected:
        place, _, parts = text.partition(" ")
        what, _, do = parts.partition(" | ")
        if place == "-":
            return Expected(None, None, None, what, do)
        match = _PLACE.fullmatch(place)
        assert match is not None, f"no place: {text}"
        return Expected(match["file"] or recipe, int(match["line"]), int(match["column"]), what, do)

    def is_met_by(self, found: Problem) -> bool:
        where = found.where
        if where is None or where.line is None:
            same_place = self.line is None
        else:
            same_place = (where.file, where.line, where.column) == (self.file, self.line, self.column)
        return same_place and self.what in found.what and self.do in found.do


@dataclass(frozen=True)
class Case:
    """A recipe, and what has to be found in it."""

    path: Path
    problems: list[Expected] = field(default_factory=list)
    notes: list[Expected] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=lambda: dict(RECORDS))

    @staticmethod
    def read(path: Path) -> Case:
        beside = path.with_suffix(".expect")
        text = (beside if beside.exists() else path).read_text(encoding="utf-8").removeprefix("\ufeff")
        case = Case(path)
        said = False
        for line in text.splitlines():
            sign, rest = line[:3], line[3:]
            if sign == "#! ":
                case.problems.append(Expected.parse(rest, path.name))
            elif sign == "#? ":
                case.notes.append(Expected.parse(rest, path.name))
            elif sign == "#$ ":
                name, _, value = rest.partition("=")
                case.env[name] = value
            elif sign != "#= ":
                break
            said = said or sign != "#$ "
        assert said, f"{path} expects nothing"
        assert not (case.problems and case.notes), f"{path} expects problems and notes"
        return case

    @property
    def name(self) -> str:
        path = self.path.parent if self.path.name == "recipe.yaml" else self.path.with_suffix("")
        return str(path.relative_to(CORPUS))

    def put_into(self, folder: Path) -> None:
        """Copy the case, so that places are short and no neighbour is suggested."""
        if self.path.name == "recipe.yaml":
            shutil.copytree(self.path.parent, folder, dirs_exist_ok=True)
        else:
            shutil.copy(self.path, folder)


def _is_a_case(path: Path) -> bool:
    """Whether a file is a recipe of the corpus, and not what one extends."""
    folders = [folder for folder in path.parents if folder.is_relative_to(CORPUS)]
    return path.name == "recipe.yaml" or not any((folder / "recipe.yaml").exists() for folder in folders)


CASES = [Case.read(path) for path in sorted(CORPUS.rglob("*.yaml")) if _is_a_case(path)]
IN_A_PROCESS = (
    "bytes/latin_1", "bytes/nul", "extends/cycle_of_three", "extends/mistake_three_files_deep", "several/five",
    "variables/unset", "yaml/very_deep",
)  # fmt: skip
"""Cases that go through the installed command."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; no variable of a shipped recipe is set."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("VLTOOL_")]:
        monkeypatch.delenv(name)
    return tmp_path


def _differences(expected: Sequence[Expected], found: Sequence[Problem]) -> str:
    """What was expected and not found, and what was found and not expected."""
    left = list(found)
    lines = []
    for one in expected:
        met = next((problem for problem in left if one.is_met_by(problem)), None)
        if met is None:
            lines.append(f"not found: {one}")
        else:
            left.remove(met)
    return "\n".join([*lines, *(f"not expected: {problem}" for problem in left)])


def _command(*arguments: str, env: Mapping[str, str], timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VLTOOL_")}
    return subprocess.run(
        [sys.executable, "-m", "vltool", *arguments],
        env=inherited | env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_the_corpus_is_there() -> None:
    assert len(CASES) >= FEWEST
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)
    assert set(IN_A_PROCESS) <= set(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_found_is_what_the_file_says(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case.put_into(folder)
    problems: Sequence[Problem] = ()
    notes: Sequence[Problem] = ()
    try:
        notes = load_recipe(case.path.name, env=case.env).notes
    except InvalidInput as error:
        problems = error.problems
    assert not (wrong := _differences(case.problems or case.notes, problems or notes)), wrong
    assert bool(problems) == bool(case.problems)

    for name, value in case.env.items():
        monkeypatch.setenv(name, value)
    ran = CliRunner().invoke(app, ["render-config", case.path.name])
    assert ran.exit_code == (2 if case.problems else 0), ran.output
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    assert "Traceback" not in ran.output
    for finding in problems or notes:
        # What a terminal would not show is escaped.
        shown = re.sub(r"[\xa0\u200b\x1b]", lambda found: ascii(found[0])[1:-1], finding.what)
        assert (shown if finding.where is None else f"{finding.where}: {shown}") in ran.stderr
        assert finding.do in ran.stderr


@pytest.mark.parametrize("case", [case for case in CASES if case.problems], ids=lambda case: case.name)
def test_programs_read_the_same_findings(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case.put_into(folder)
    for name, value in case.env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput) as caught:
        load_recipe(case.path.name)
    ran = CliRunner().invoke(app, ["render-config", case.path.name, "--json"])
    document = json.loads(ran.stdout)
    assert document["exit_code"] == ran.exit_code == 2
    assert document["problems"] == [problem.to_json() for problem in caught.value.problems]


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_the_command_says_it_too(name: str, folder: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    case.put_into(folder)
    ran = _command("render-config", case.path.name, env=case.env)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    for problem in case.problems:
        place = "" if problem.line is None else f"{problem.file}:{problem.line}:{problem.column}: "
        assert f"{place}{problem.what}" in ran.stderr


def test_a_bomb_of_aliases_does_not_go_off(folder: Path) -> None:
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (folder / "bomb.yaml").write_text("\n".join(lines) + "\n")
    ran = _command("render-config", "bomb.yaml", env=RECORDS)
    assert ran.returncode == 2
    assert "bomb.yaml:2:5: anchor &a1" in ran.stderr
    assert f"{30 + 29 * 9} problems" in ran.stderr


def test_a_folder_named_like_a_recipe_is_none(folder: Path) -> None:
    (folder / "mine.yaml").mkdir()
    (folder / "over.yaml").write_text("extends: mine.yaml\n")
    with pytest.raises(InvalidInput, match=r"mine\.yaml is a folder, no recipe"):
        load_recipe("mine.yaml", env=RECORDS)
    with pytest.raises(InvalidInput, match=r"over\.yaml:1:10: mine\.yaml is a folder, no recipe"):
        load_recipe("over.yaml", env=RECORDS)


def test_a_chain_that_never_ends_is_cut(folder: Path) -> None:
    for number in range(600):
        (folder / f"r{number}.yaml").write_text(f"extends: r{number + 1}.yaml\n")
    with pytest.raises(InvalidInput, match=r"r50\.yaml:1:10: more than 50 recipes that extend each other"):
        load_recipe("r0.yaml", env=RECORDS)


@pytest.mark.parametrize("target", ["nowhere.yaml", "link.yaml"])
def test_a_link_to_nothing_is_no_recipe(folder: Path, target: str) -> None:
    (folder / "link.yaml").symlink_to(target)
    (folder / "over.yaml").write_text("extends: link.yaml\n")
    with pytest.raises(InvalidInput, match=rf"link\.yaml is a link to {target}, which is not there"):
        load_recipe("link.yaml", env=RECORDS)
    with pytest.raises(InvalidInput, match=rf"over\.yaml:1:10: link\.yaml is a link to {target}"):
        load_recipe("over.yaml", env=RECORDS)


@pytest.mark.parametrize("name", ["new\nline.yaml", "a b.yaml", "ä.yaml", "-x.yaml", "[red]x.yaml", "a:1:2.yaml"])
def test_a_strange_file_name_is_shown(folder: Path, name: str) -> None:
    (folder / name).write_text("extends: base\ntraining: {sed: 1}\n", encoding="utf-8")
    ran = _command("render-config", "--", name, env=RECORDS)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert ":2:12: unknown key training.sed" in ran.stderr


def test_a_directory_that_is_missing_is_named(folder: Path) -> None:
    ran = _command("render-config", str(folder / "no" / "such" / "mine.yaml"), env=RECORDS)
    assert ran.returncode == 2
    assert "no recipe" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_pipe_with_a_writer_is_read(folder: Path) -> None:
    script = f"{sys.executable} -m vltool render-config <(printf 'extends: base\\ntraining: {{sed: 1}}\\n')"
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    ran = subprocess.run(
        [bash, "-c", script], env=os.environ | RECORDS, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 2
    assert ":2:12: unknown key training.sed" in ran.stderr


def test_a_pipe_without_a_writer_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.yaml")
    ran = _command("render-config", "pipe.yaml", env=RECORDS, timeout_s=10.0)
    assert ran.returncode == 2
    assert "pipe.yaml" in ran.stderr
