"""What `train` judges before its worker starts: everything that takes no longer than reading headers.

`vltool check` asks the same rules; here they are called together, and what they find becomes the end of the run or a
warning.
"""

from __future__ import annotations

from collections.abc import Sequence

from vltool.audit.base_rules import judge_base
from vltool.audit.finding import Finding, arranged
from vltool.audit.host import Host
from vltool.audit.host_rules import judge_host
from vltool.audit.recipe_rules import judge_recipe
from vltool.errors import BadContent, InvalidInput, MissingOnHost, Problem, VltoolError
from vltool.recipe.schema import Recipe
from vltool.run.plan import RunPlan

_CONTENT = ("base", "chat", "ckpt", "record", "records", "token", "tokenizers")
"""First words of the ids of rules on what files hold."""


def fast_findings(plan: RunPlan, recipe: Recipe, host: Host) -> list[Finding]:
    """All findings of the fast rules, the worst first. Starts no torch and opens no image.

    recipe: the one that the plan was made from, for the places of its keys.
    """
    return arranged([*judge_recipe(plan, recipe), *judge_base(plan, recipe), *judge_host(plan, host)])


def as_error(findings: Sequence[Finding]) -> VltoolError | None:
    """The error that ends a run with these findings; None where none of them is an error.

    Its class, and so the exit code, is that of what has to be changed first: the recipe, this host, or files.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return None
    problems = [as_problem(finding) for finding in errors]
    words = {finding.id.split("-")[0] for finding in errors}
    if words - {"host", *_CONTENT}:
        return InvalidInput(problems)
    return MissingOnHost(problems) if "host" in words else BadContent(problems)


def as_problem(finding: Finding) -> Problem:
    """A finding in the words of an error or a warning, with its id."""
    return Problem(f"{finding.what} ({finding.id})", finding.remedy, finding.where, finding.id)
