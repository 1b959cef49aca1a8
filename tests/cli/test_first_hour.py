"""A new user's first hour: an overlay with mistakes, mended from the messages alone, rendered, compared."""

from __future__ import annotations

import json
import re

import pytest

MISTAKES = """extends: stage3_gkd_foward
model:
  model: ./base
tuner:
  lora_rnak: 16
training:
  learning_rate: "2e-5"
  lora_alpha: 32
  effective_batch_size: 12
  per_device_train_batch_size: 8
custom:
  train_jsonl: train.jsonl
  emit_norm: norm_1000
"""


def mend(text, problem):
    """Do what one message says, at the place that it names, and nothing else."""
    lines = text.splitlines()
    at, column, do = problem["line"] - 1, problem["column"] - 1, problem["do"]
    line = lines[at]
    if found := re.search(r"did you mean ([\w.]+)\?", do):
        lines[at] = line[:column] + re.sub(r"^[\w.]+", found[1], line[column:])
    elif found := re.search(r"it belongs in (\w+)$", do):
        del lines[at]
        lines.insert(lines.index(f"{found[1]}:") + 1, line)
    elif found := re.search(r"write (\w+): (\S+)( or \S+)?$", do):
        assert f"{found[1]}: " in line
        lines[at] = re.sub(r"\w+: .*", f"{found[1]}: {found[2]}", line)
    else:
        pytest.fail(f"no one could act on this: {problem}")
    return "\n".join(lines) + "\n"


def test_the_first_hour(vltool, tmp_path):
    recipe = tmp_path / "mine.yaml"

    code, out, _ = vltool("render-config", "--list")
    assert code == 0
    assert "stage3_gkd_forward" in out

    recipe.write_text(MISTAKES)
    rounds = 0
    while True:
        code, out, err = vltool("render-config", "mine.yaml", "--json")
        if code == 0:
            break
        problems = json.loads(out)["problems"]
        assert code == 2
        assert all(f"mine.yaml:{problem['line']}:{problem['column']}: " in err for problem in problems)
        text = recipe.read_text()
        # A line that belongs elsewhere moves last, so that the others are where the messages say.
        for problem in sorted(problems, key=lambda problem: "belongs in" in problem["do"]):
            text = mend(text, problem)
        assert text != recipe.read_text()
        recipe.write_text(text)
        rounds += 1
    # What the misspelt base would have said shows after it was mended; the rest was told at once.
    assert rounds == 2

    code, out, _ = vltool("render-config", "mine.yaml", "--no-provenance")
    assert code == 0
    assert "  lora_rank: 16\n" in out
    assert "  lora_alpha: 32\n" in out
    assert "  learning_rate: 2.0e-05\n" in out
    assert "  emit_norm: norm1000\n" in out

    code, out, _ = vltool("render-config", "mine.yaml", "--diff", "base.yaml")
    assert code == 2
    (tmp_path / "site.yaml").write_text("model: {model: ./base}\ncustom: {train_jsonl: train.jsonl}\n")
    (tmp_path / "plain.yaml").write_text("extends: [stage3_gkd_forward, site.yaml]\n")
    code, out, _ = vltool("render-config", "mine.yaml", "--diff", "plain.yaml")
    assert code == 0
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "tuner.lora_alpha", "tuner.lora_rank", "training.effective_batch_size", "training.learning_rate",
        "training.per_device_train_batch_size",
    ]  # fmt: skip
