"""Findings on records beside one another: repetitions, leaks, lengths, and what a run of them would learn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from vltool.audit.data_rules import Judged
from vltool.audit.finding import Finding, Rule, Severity
from vltool.audit.lengthened import Lengthened, lengthened
from vltool.data.fingerprints import Fingerprints
from vltool.data.histogram import Histogram
from vltool.data.index import JsonlIndex
from vltool.data.twins import Twin, answered_otherwise, leaked, said_again
from vltool.errors import InvalidInput, MissingOnHost, Where
from vltool.run.plan import RunPlan

LEAST_SUPERVISED = 0.01
"""Share of the tokens that are labels."""
CUT_SHARE = 0.01
"""Share of answers that sampling may cut before it is more than worth a note."""
FAR_UNDER = 4
"""Times that 99 % of the records fit into the length knob."""
FEWEST_SPREAD = 50
"""Records of which percentiles say something."""
ROUND_TO = 256
"""Tokens to which a length is rounded up that is proposed."""
SHOWN = 3
"""Pairs of lines in a finding's evidence."""

RULES: tuple[Rule, ...] = (
    Rule(
        id="records-duplicate",
        severity="warning",
        means="records say of the same image what others have said already",
        why="Each copy counts as a record of its own: what it shows is learnt more often than the rest, and an epoch "
        "takes longer. Images are the same if their paths are, or their bytes where the answers are the same.",
        remedy="Drop the copies. To show some records more often on purpose, use a mixture's ratio, which says so.",
    ),
    Rule(
        id="records-contradict",
        severity="note",
        means="the same image and the same question have several answers",
        why="The model learns something between them. That is meant where an image has several captions; where it "
        "has several sets of objects, one of them is most often an older version.",
        remedy="Keep the answer that is right, or ask for each of them in words of its own.",
    ),
    Rule(
        id="records-leak",
        severity="warning",
        means="images of the validation records are trained on",
        why="The validation loss falls by memory, the best checkpoint is the one that remembers best, and nothing "
        "says how the model does on images that it has not seen. Images are compared by path and by content, so "
        "that copies under other names are found; records without an image by their texts.",
        remedy="Take these records out of one of the two files; split by image, not by record.",
    ),
    Rule(
        id="records-vision",
        severity="error",
        means="not one record that is trained on shows an image",
        why="No vision token enters a step. What is trained of the vision tower and the aligner gets no gradient, "
        "and the rest forgets to look; most often the images were lost when the records were converted. It is an "
        "error where the recipe trains the tower or the aligner.",
        remedy='Name the images in each record: "images": ["path.jpg"], or image items in the messages.',
        covers="health check: Vision tokens present (`pixel_values`, `image_grid_thw`)",
    ),
    Rule(
        id="records-supervised",
        severity="warning",
        means="hardly any of the tokens are learnt",
        why="Only answers are labels; images and prompts cost time and memory, and teach nothing by themselves. "
        "Where less than one token in a hundred is a label, a step learns from very little.",
        remedy="Lower template.max_pixels where the images are larger than the task needs, shorten the prompt, and "
        "check that the answers are what they should be.",
    ),
    Rule(
        id="records-completion",
        severity="warning",
        means="answers are longer than a sampled one may be",
        why="Steps of distillation on sampled text stop writing at rlhf.max_completion_length tokens. A model that "
        "answers as these records do is cut off there, and learns from captions without an end.",
        remedy="Raise rlhf.max_completion_length to the length of the longest answers, or accept that these are cut.",
    ),
    Rule(
        id="records-truncated",
        severity="warning",
        means="an answer breaks off",
        why="JSON or a block of code that opens has to close. An answer that does not was cut when it was written, "
        "by a limit of tokens for one, and teaches the model to stop in the middle.",
        remedy="Write the answer again with a larger limit, or drop the record.",
    ),
    Rule(
        id="records-length-spread",
        severity="note",
        means="the length knob is far above the records' lengths",
        why="The knob is what a packed row is filled to, what memory has to be there for, and the last thing that "
        "stops a record that went wrong. Far above all lengths it does nothing of it well.",
        remedy="Set global_max_length a little above the longest record, augmented ones included.",
        covers="FAQ: Reduce sequence length",
    ),
    Rule(
        id="record-augmented-length",
        severity="warning",
        means="augmentation makes samples longer than the length knob allows",
        why="An image that is enlarged has more tokens. A sample that no longer fits is shown as its file has it: "
        "nothing stops, but the augmentation is lost on just the largest images.",
        remedy="Raise global_max_length, lower template.max_pixels, or weaken what enlarges images in "
        "augmentation.ops.",
    ),
    Rule(
        id="record-object-twice",
        severity="warning",
        means="a record names the same object twice",
        why="The model learns to repeat itself, which it does at length once it has begun.",
        remedy="Keep one of the two.",
    ),
)

_REMEDY = {rule.id: rule.remedy for rule in RULES}


def judge_records(
    judged: Sequence[Judged],
    *,
    stage: Callable[[str], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Finding]:
    """What there is to say of judged files beside one another, those of a run or a mixture together.

    stage and progress are told what is being done. Raises BadContent for a file that changed since it was judged.
    """
    findings: list[Finding] = []
    for group in _groups(judged):
        findings += _repetitions(group.train, trained="train on")
        findings += _repetitions(group.val, trained="validate on")
        findings += _leaks(group)
        findings += _blind(group)
        if group.plan is not None:
            augmented, found = _augmented(group, group.plan, stage, progress)
            findings += [*found, *_spread(group, group.plan, augmented)]
        for one in (*group.train, *group.val):
            findings += _of_one(one)
    return findings


@dataclass(slots=True)
class _Group:
    """Files that are trained on together and those that this is validated on."""

    plan: RunPlan | None
    train: list[Judged] = field(default_factory=list)
    val: list[Judged] = field(default_factory=list)


def _groups(judged: Sequence[Judged]) -> list[_Group]:
    groups: dict[int, _Group] = {}
    for one in judged:
        together = one.records.plan or one.records.fusion or one
        group = groups.setdefault(id(together), _Group(one.records.plan))
        (group.val if one.records.split == "val" else group.train).append(one)
    return list(groups.values())


def _finding(rule: str, severity: Severity, what: str, where: Where | None, evidence: str = "") -> Finding:
    return Finding(
        id=rule, severity=severity, what=what, where=where, evidence=evidence, remedy=_REMEDY[rule],
    )  # fmt: skip


def _prints(files: Sequence[Judged]) -> list[Fingerprints]:
    return [one.facts.fingerprints for one in files if one.facts is not None]


def _pairs(twins: Sequence[Twin]) -> str:
    """The first of them, as evidence."""
    more = f", and {len(twins) - SHOWN:,} more" if len(twins) > SHOWN else ""
    return ", ".join(f"{twin.where} as {twin.of}" for twin in twins[:SHOWN]) + more


def _repetitions(files: Sequence[Judged], *, trained: str) -> Iterator[Finding]:
    prints = _prints(files)
    total = f"of {sum(map(len, prints)):,} records to {trained}"
    if twins := said_again(prints):
        what = f"{len(twins):,} {total} say again what an earlier one says of the same image"
        yield _finding("records-duplicate", "warning", what, twins[0].where, _pairs(twins))
    if twins := answered_otherwise(prints):
        what = f"{len(twins):,} {total} answer in another way than an earlier one of the same image and question"
        yield _finding("records-contradict", "note", what, twins[0].where, _pairs(twins))


def _leaks(group: _Group) -> Iterator[Finding]:
    train = _prints(group.train)
    for one in _prints(group.val):
        if twins := leaked(one, train):
            what = f"{len(twins):,} of {len(one):,} validation records are trained on, or their images are"
            yield _finding("records-leak", "warning", what, twins[0].where, _pairs(twins))


def _blind(group: _Group) -> Iterator[Finding]:
    prints = _prints(group.train)
    total = sum(map(len, prints))
    if not total or any(one.pictured.any() for one in prints):
        return
    trained = []
    if (plan := group.plan) is not None:
        parts = {"the vision tower": plan.tuner.freeze_vit, "the aligner": plan.tuner.freeze_aligner}
        trained = [name for name, frozen in parts.items() if not frozen]
    what = f"none of {total:,} records shows an image"
    if trained:
        what += f", and the recipe trains {' and '.join(trained)}"
    where = Where(str(group.train[0].records.jsonl))
    yield _finding("records-vision", "error" if trained else "warning", what, where)


def _of_one(one: Judged) -> Iterator[Finding]:
    """What there is to say of a file by itself."""
    if one.scan is None or one.facts is None:
        return
    jsonl, facts = one.records.jsonl, one.facts
    for rule, count, places, say in (
        ("records-truncated", facts.cut_count, facts.cut, "an answer breaks off: {}"),
        ("record-object-twice", facts.repeating_count, facts.repeating, "{}"),
    ):
        index = JsonlIndex(jsonl) if places else None
        for position, how in places:
            assert index is not None
            yield _finding(rule, "warning", say.format(how), index.where(position))
        if more := count - len(places):
            what = f"so it is with {more:,} more records, which are not listed"
            yield _finding(rule, "warning", what, Where(str(jsonl)))
    lengths, answers = one.scan.lengths, one.scan.answers
    if lengths.count and (share := one.scan.supervised / lengths.total) < LEAST_SUPERVISED:
        what = f"{share:.2%} of {lengths.total:,} tokens are labels"
        yield _finding("records-supervised", "warning", what, Where(str(jsonl)))
    plan = one.records.plan
    sampling = plan.distillation.sampling if plan is not None and plan.distillation is not None else None
    if sampling is None or one.records.split == "val" or one.scan.longest_answer is None:
        return
    limit = sampling.max_completion_length
    if cut := answers.above(limit):
        tokens, where = one.scan.longest_answer
        what = (
            f"{cut:,} of {answers.count:,} answers have more than rlhf.max_completion_length: {limit} tokens, "
            "and would be cut if they were sampled"
        )
        seen = ", ".join(f"{percent} % have at most {answers.percentile(percent):,}" for percent in (50, 90, 99))
        severity: Severity = "warning" if cut >= CUT_SHARE * answers.count else "note"
        yield _finding("records-completion", severity, what, where, f"{seen}, the longest {tokens:,} tokens")


def _augmented(
    group: _Group,
    plan: RunPlan,
    stage: Callable[[str], None] | None,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[Lengthened | None, list[Finding]]:
    files = [(part, one.scan) for part, one in zip(plan.data.train, group.train, strict=True) if one.scan is not None]
    counter = group.train[0].records.counter
    if counter is None or len(files) < len(group.train) or any(len(seen.bad) == seen.records for _, seen in files):
        return None, []
    train = tuple(msgspec.structs.replace(part, skip=seen.bad) for part, seen in files)
    mended = msgspec.structs.replace(plan, data=msgspec.structs.replace(plan.data, train=train))
    try:
        found = lengthened(mended, counter, stage=stage, progress=progress)
    except InvalidInput:  # of the mixture, which another rule tells
        return None, []
    except MissingOnHost as error:
        what = f"how long augmentation makes samples cannot be told here: {error.problems[0].what}"
        return None, [_finding("record-augmented-length", "note", what, None)]
    if found is None or (problem := found.problem(plan)) is None:
        return found, []
    return found, [_finding("record-augmented-length", "warning", problem.what, problem.where)]


def _spread(group: _Group, plan: RunPlan, augmented: Lengthened | None) -> Iterator[Finding]:
    """Whether the length knob is far above what it has to let through."""
    counted: Counter[int] = Counter()
    for one in (*group.train, *group.val):
        if one.scan is not None:
            counted.update(dict(one.scan.lengths.counts))
    lengths, knob = Histogram.of(counted), plan.data.max_length
    usual = lengths.percentile(99)
    if lengths.count < FEWEST_SPREAD or FAR_UNDER * usual > knob:
        return
    longest = max(lengths.most, augmented.lengths.most if augmented is not None else 0)
    what = f"99 % of {lengths.count:,} records have at most {usual:,} tokens, and the limit is {knob:,}: "
    if 2 * longest <= knob:
        what += f"{_rounded(longest)} would do for all"
        what += ", augmented ones included" if augmented is not None else ""
    else:
        what += f"only {lengths.above(_rounded(2 * usual)):,} need more than {_rounded(2 * usual)}"
    yield _finding("records-length-spread", "note", what, _origin(plan, "max_length"))


def _rounded(tokens: int) -> int:
    return -(-tokens // ROUND_TO) * ROUND_TO


def _origin(plan: RunPlan, argument: str) -> Where:
    """The place in the recipe that set an argument."""
    told = plan.origins.get(argument, plan.recipe)
    if (numbered := re.fullmatch(r"(.+):(\d+):(\d+)", told)) is None:
        return Where(told)
    return Where(numbered[1], int(numbered[2]), int(numbered[3]))
