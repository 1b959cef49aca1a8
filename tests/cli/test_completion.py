"""Shell completion, asked of real shells: the scripts in completions/ are sourced and TAB is pressed."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPLETIONS = ROOT / "completions"
DEADLINE_S = 30
GKD = ["stage3_gkd", "stage3_gkd_forward", "stage3_gkd_visual"]

# TAB inserts, ^T inserts every match there is, ^G writes the line to the file `line` and leaves.
BASH = rf"""
source {shlex.quote(str(COMPLETIONS / "vltool.bash"))}
show() {{ printf %s "$READLINE_LINE" > "$HOME/line"; exit; }}
bind '"\C-t": insert-completions'
bind -x '"\C-g": show'
PS1='READY> '
"""
ZSH = f"""
autoload -Uz compinit && compinit -C -d "$HOME/../../zcompdump"
source {shlex.quote(str(COMPLETIONS / "_vltool"))}
insert_all() {{ _main_complete; compstate[insert]=all }}
zle -C insert_all complete-word insert_all
bindkey '^T' insert_all
show() {{ print -rn -- "$BUFFER" > "$HOME/line"; exit }}
zle -N show
bindkey '^G' show
PS1='READY> '
"""


class Shell:
    """One of the three shells, with vltool on its path and an empty folder to stand in."""

    def __init__(self, name: str, home: Path, here: Path):
        self.name, self.home, self.here = name, home, here
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = {"PATH": path, "HOME": str(home), "ZDOTDIR": str(home), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
        (home / ".bashrc").write_text(BASH)
        (home / ".zshrc").write_text(ZSH)

    def offers(self, words: str, begun: str = "") -> list[str]:
        """What it offers after some words for a word that was begun."""
        line = f"{words} {begun}"
        if self.name == "fish":
            script = f"source {shlex.quote(str(COMPLETIONS / 'vltool.fish'))}; complete -C $argv[1]"
            asked = ["fish", "--no-config", "-c", script, line]
            done = subprocess.run(
                asked, cwd=self.here, env=self.env, capture_output=True, text=True, timeout=DEADLINE_S
            )
            assert not done.stderr
            return [offer.split("\t")[0] for offer in done.stdout.splitlines()]
        after = self.press(line, "\x14")
        return [] if after == line else shlex.split(after)[len(shlex.split(words)) :]

    def press(self, line: str, key: str) -> str:
        """The line after a key."""
        command = {"bash": ["bash", "--noprofile", "-i"], "zsh": ["zsh", "-o", "no_global_rcs", "-i"]}[self.name]
        terminal, inner = pty.openpty()
        shell = subprocess.Popen(
            command, cwd=self.here, env=self.env, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
        )
        os.close(inner)
        try:
            shown = read_until(terminal, b"READY> ")
            os.write(terminal, f"{line}{key}\x07".encode())
            shown += read_until(terminal, None)
        finally:
            shell.kill()
            shell.wait()
            os.close(terminal)
        written = self.home / "line"
        assert written.is_file(), shown.decode(errors="replace")
        after = written.read_text()
        written.unlink()
        return after


def read_until(terminal: int, mark: bytes | None) -> bytes:
    """All that a terminal shows up to a mark, or to its end."""
    shown, end = b"", time.monotonic() + DEADLINE_S
    while mark is None or mark not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, shown.decode(errors="replace")
        try:
            more = os.read(terminal, 65536)
        except OSError:  # Linux says so when the shell is gone
            more = b""
        if not more:
            assert mark is None, shown.decode(errors="replace")
            break
        shown += more
    return shown


def started(name: str, folder: Path) -> Shell:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    for inner in ("home", "here"):
        (folder / inner).mkdir()
    return Shell(name, folder / "home", folder / "here")


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request, tmp_path):
    return started(request.param, tmp_path)


@pytest.fixture
def bash(tmp_path):
    return started("bash", tmp_path)


def test_the_scripts_are_what_the_tool_writes(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools" / "completions.py", tmp_path], check=True)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(written) == {"vltool.bash", "_vltool", "vltool.fish"}
    assert written == {path.name: path.read_bytes() for path in COMPLETIONS.iterdir()}


def test_commands_are_offered(shell):
    assert {"train", "render-config", "smoke"} <= set(shell.offers("vltool"))


def test_options_of_a_command_are_offered(shell):
    assert {"--base-config", "--diff", "--list", "--json"} <= set(shell.offers("vltool render-config", "--"))


def test_shipped_recipes_are_offered(shell):
    assert sorted(shell.offers("vltool render-config", "stage3_gkd")) == GKD


@pytest.mark.parametrize(
    "place",
    [
        "train",
        "train --config",
        "train stage3 --base-config",
        "smoke --tiny",
        "render-config --base-config",
        "render-config stage3 --diff",
    ],
)
def test_recipes_are_offered_wherever_one_is_named(bash, place):
    assert bash.offers(f"vltool {place}", "stage3_gkd") == GKD


def test_a_recipe_is_offered_after_an_equals_sign(bash):
    assert bash.press("vltool train --config=stage3_gkd_f", "\t") == "vltool train --config=stage3_gkd_forward "


def test_recipe_files_here_are_offered_beside_the_shipped(shell):
    for name in ("stage3_mine.yaml", "stage3_old.yml", "stage3_notes.txt", "stage3_odd.yxml"):
        (shell.here / name).touch()
    (shell.here / "stage3_folder.yaml").mkdir()
    assert sorted(shell.offers("vltool train", "stage3_")) == [*GKD, "stage3_mine.yaml", "stage3_old.yml"]


def test_files_of_records_are_offered_to_check_alone(bash):
    for name in ("stage3_train.jsonl", "stage3_mine.yaml"):
        (bash.here / name).touch()
    assert bash.offers("vltool check", "stage3_") == [*GKD, "stage3_mine.yaml", "stage3_train.jsonl"]
    assert bash.offers("vltool check --recipe", "stage3_") == [*GKD, "stage3_mine.yaml"]


def test_nothing_is_offered_for_what_begins_no_name(shell):
    (shell.here / "mine.yaml").touch()
    for words, begun in (("vltool render-config", "zz"), ("vltool", "zz"), ("vltool train", "--zz")):
        assert shell.offers(words, begun) == []


def test_a_name_with_spaces_is_one_word(shell):
    names = ["my café 2+1, @50%.yaml", "my first-best_recipe.yaml"]
    for name in names:
        (shell.here / name).touch()
    for begun in ("m", "my\\ "):
        assert sorted(shell.offers("vltool train", begun)) == names, begun


@pytest.mark.parametrize(
    ("begun", "word"),
    [
        ("m", r"my\ recipe.yaml"),
        (r"my\ r", r"my\ recipe.yaml"),
        ("'my ", "'my recipe.yaml'"),
        ('"m', '"my recipe.yaml"'),
    ],
)
def test_tab_quotes_as_the_line_does(bash, begun, word):
    (bash.here / "my recipe.yaml").touch()
    assert bash.press(f"vltool train {begun}", "\t") == f"vltool train {word} "


def test_a_name_that_no_shell_takes_plainly_is_still_found_as_a_path(shell):
    names = ["q  b.yaml", "q$HOME.yaml", "q's.yaml", "q:b.yaml", "q=b.yaml", "q[1].yaml"]
    for name in (*names, ".q.yaml"):
        (shell.here / name).touch()
    assert sorted(shell.offers("vltool train", "q")) == names
    assert shell.offers("vltool train", ".q") == [".q.yaml"]


def test_inside_a_folder_the_shell_completes_paths(shell):
    (shell.here / "stage3 runs").mkdir()
    (shell.here / "stage3 runs" / "stage3_gkd.txt").touch()
    for begun in ("stage3\\ runs/", "stage3\\ runs/st", "./stage3\\ runs/"):
        offered = shell.offers("vltool train", begun)
        assert [Path(offer) for offer in offered] == [Path("stage3 runs/stage3_gkd.txt")], begun
