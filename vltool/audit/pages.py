"""The pages of the rules, in Markdown, and their index with what stands for each row of the operators' playbook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vltool.audit.finding import Rule

_MADE = "<!-- Written by tools/finding_pages.py from the rules themselves: change those, and run it again. -->"
_TIMES = {"error": "fails a check", "warning": "fails a check with `--strict`", "note": "never fails a check"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the playbook's health checks, troubleshooting or FAQ."""

    name: str
    """What kind it is, and its own words, as `Rule.covers` has it."""
    beside: str = ""
    """What else shows it, or, for what no rule can see beforehand, what shows it in its place."""


ROWS: tuple[Row, ...] = (
    Row("health check: Vision tokens present (`pixel_values`, `image_grid_thw`)"),
    Row("health check: Image placeholders match image count in user messages",
        "vltool places every image itself, through the model's own template"),
    Row("health check: `modules_to_save` lists any full-tuned modules (if used)",
        "`train` shows what trains, per tower, before step 1, and stops where that is not the recipe's"),
    Row("health check: Adapter config correct (for LoRA mode)"),
    Row("health check: Correct base model path"),
    Row("health check: `global_max_length` or `template.max_length` set"),
    Row("troubleshooting: Full model saved instead of adapter",
        "the model is always prepared by vltool, and `smoke` looks at the checkpoint that is saved"),
    Row("troubleshooting: Zero gradients for vision/aligner",
        "`smoke` proves a gradient in each part that trains; `train` stops where a part got none"),
    Row("troubleshooting: OOM"),
    Row("troubleshooting: Slow convergence",
        "`train/loss` and `eval/loss` in `logging.jsonl`; `smoke` proves that captions become likelier"),
    Row("troubleshooting: NaN loss", "`train` stops at a loss that is not finite"),
    Row("troubleshooting: NCCL monitoredBarrier after best checkpoint",
        "metrics are reduced over all processes before any of them decides, so that all decide alike"),
    Row("FAQ: ValueError: self.dataset: [], self.cached_dataset: []. Please input the training dataset.",
        "`data.dataset` may be left out: vltool fills in what ms-swift asks for"),
    Row("FAQ: Expected all tensors to be on the same device",
        "it cannot be seen beforehand; `smoke` runs the recipe's own path, and recipes hold no code that could move a "
        "tensor"),
    Row("FAQ: Training stuck at 0% GPU utilization",
        "in a run, the rate on its progress line against the time of a step that `vltool check` estimates"),
    Row("FAQ: Loss spikes periodically", "`train/loss` and `train/grad_norm` in `logging.jsonl`"),
)  # fmt: skip
"""All six boxes, all rows of the troubleshooting table, all issues of the FAQ, in the playbook's order."""


def covered(rules: Sequence[Rule]) -> dict[str, list[str]]:
    """Row -> ids of the rules that stand for it; after `ROWS`, other advice of the playbook that rules stand for."""
    found: dict[str, list[str]] = {row.name: [] for row in ROWS}
    for rule in rules:
        for name in filter(None, rule.covers.split("; ")):
            found.setdefault(name, []).append(rule.id)
    return found


def page(rule: Rule) -> str:
    """A rule's page: what was found, why it matters, what to do."""
    head = [f"# {rule.id}", f"**{rule.severity}** · {_sentence(rule.means)} A finding of this severity "
            f"{_TIMES[rule.severity]}."]  # fmt: skip
    told = ["## Why it matters", rule.why, "## What to do", rule.remedy]
    if rule.covers:
        told += ["## In the playbook", "\n".join(f"- {name}" for name in rule.covers.split("; "))]
    if rule.source:
        told += ["## Source", f"<{rule.source}>"]
    return "\n\n".join([*head, *told]) + "\n"


def file_of_page(rule: Rule) -> str:
    """The page as it lies in the docs."""
    return f"{_MADE}\n\n{page(rule)}"


def index(groups: Mapping[str, Sequence[Rule]]) -> str:
    """The list of all pages by group, and the rows of the playbook with what stands for them."""
    told = [
        _MADE,
        "# Findings",
        "What `vltool check`, `vltool inspect-ckpt` and `vltool train` may find, by id. `vltool check --explain ID` "
        "prints a page in the terminal; `--only` and `--ignore` choose by id, and ids stay the same from version to "
        "version. The severity is the worst that the rule reports.",
    ]
    for title, rules in groups.items():
        rows = [f"| [{rule.id}]({rule.id}.md) | {rule.severity} | {_cell(rule.means)} |" for rule in rules]
        told += [f"## {title}", "\n".join(["| id | severity | what was found |", "|---|---|---|", *rows])]
    told += ["## What stands for the playbook's rows", "\n".join(_coverage(groups))]
    return "\n\n".join(told) + "\n"


def _coverage(groups: Mapping[str, Sequence[Rule]]) -> list[str]:
    lines = ["| row | findings | beside them, or in their place |", "|---|---|---|"]
    beside = {row.name: row.beside for row in ROWS}
    for name, ids in covered([rule for rules in groups.values() for rule in rules]).items():
        listed = ", ".join(f"[{rule}]({rule}.md)" for rule in ids) or "—"
        lines.append(f"| {_cell(name)} | {listed} | {_cell(beside.get(name, ''))} |")
    return lines


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
