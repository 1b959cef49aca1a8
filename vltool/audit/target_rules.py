"""Findings on what a plan's names and patterns reach in the base's own list of tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vltool.audit.finding import Finding, Rule, Severity
from vltool.audit.trainable import Trainable, trainable
from vltool.audit.weights import HEAD, Weight, adaptable
from vltool.checkpoint.architecture import Architecture, read_architecture
from vltool.errors import BadContent, InvalidInput, nearest
from vltool.recipe.schema import Recipe
from vltool.recipe.tuner_rules import NO_TARGETS
from vltool.run.arguments import named_in, value_of
from vltool.run.plan import RunPlan

_SHOWN = 3
_MERGER = re.compile(r"^model\.visual\.(?:merger|deepstack_merger_list\.\d+)(?=\.)")
_WHOLE_MODEL = 0.1
"""Share of the parameters below which a checkpoint of all of them is waste."""


def judge_targets(plan: RunPlan, recipe: Recipe) -> list[Finding]:
    """All findings on what trains of the base; none for a base that cannot be read, of which `judge_base` tells."""
    try:
        table, architecture = trainable(plan), read_architecture(Path(plan.original))
    except (InvalidInput, BadContent):
        return []
    judge = _Judge(plan, recipe, table, architecture)
    found = [*judge.targets(), *judge.saved(), *judge.sizes()]
    if not any(finding.severity == "error" for finding in found):
        found += judge.nothing()
    return [*found, *judge.whole()]


class _Judge:
    """A plan, and the modules of its base."""

    def __init__(self, plan: RunPlan, recipe: Recipe, table: Trainable, architecture: Architecture) -> None:
        self._plan, self._recipe, self._tuner = plan, recipe, plan.tuner
        self._table, self._architecture = table, architecture
        self._by_module: dict[str, list[Weight]] = {}
        for weight in table.weights:
            self._by_module.setdefault(weight.module, []).append(weight)
        parts = [module.split(".") for module in self._by_module]
        self._modules = {".".join(names[:end]) for names in parts for end in range(1, len(names) + 1)}
        """Those with tensors, and those around them."""

    def _finding(self, rule: str, severity: Severity, key: str, what: str, remedy: str, evidence: str = "") -> Finding:
        where = self._recipe.where(f"tuner.{key}")
        return Finding(id=rule, severity=severity, what=what, where=where, remedy=remedy, evidence=evidence)

    def _shape(self) -> str:
        shape = self._architecture
        return (
            f"the base ({shape.model_type}) has language layers 0 to {shape.text_layers - 1}, vision blocks 0 to "
            f"{shape.vision_depth - 1} and deepstack mergers 0 to {shape.deepstack_mergers - 1}"
        )

    def _nearest(self, name: str) -> str | None:
        depth = name.count(".") + 1
        return nearest(name, {".".join(module.split(".")[-depth:]) for module in self._modules})

    def targets(self) -> Iterator[Finding]:
        """Targets that no module has, and modules that no adapter goes on."""
        tuner = self._tuner
        if tuner.tuner_type == "full":
            return
        if tuner.target_regex is not None:
            if tuner.target_regex in NO_TARGETS:
                return
            pattern = re.compile(tuner.target_regex)
            met = self._met(lambda module: pattern.fullmatch(module) is not None)
            if not met and not self._carries():
                inside = any(map(pattern.fullmatch, self._modules))
                what = "tuner.target_regex matches no module of the base as a whole"
                if inside:
                    what = "tuner.target_regex matches only modules that modules_to_save trains in full already"
                remedy = "write target_regex: '^$' for no adapter" if inside else "look at the names and indices"
                yield self._finding("tuner-target-absent", "error", "target_regex", what, remedy, self._shape())
            yield from self._refused("target_regex", met)
            return
        if "all-linear" in tuner.target_modules:
            return
        reached = {name: self._met(_suffix(name)) for name in tuner.target_modules}
        none = not any(reached.values()) and not self._carries()
        for name, met in reached.items():
            if met:
                continue
            guess = self._nearest(name)
            saved = any(map(_suffix(name), self._modules))
            what = f"tuner.target_modules: the base has no module {name}"
            if saved:
                what = f"tuner.target_modules: {name} names only modules that modules_to_save trains in full already"
            remedy = f"did you mean {guess}?" if guess and guess != name else "take it out"
            severity: Severity = "error" if none else "warning"
            yield self._finding("tuner-target-absent", severity, "target_modules", what, remedy, self._shape())
        yield from self._refused("target_modules", sorted({module for met in reached.values() for module in met}))

    def _met(self, matches: Callable[[str], object]) -> list[str]:
        """Modules, those that only hold others included, that targets reach; none that are saved in full."""
        saved = self._tuner.modules_to_save
        return sorted(
            module for module in self._modules if matches(module) and not any(named_in(module, top) for top in saved)
        )

    def _carries(self) -> bool:
        return self._tuner.carried is not None and bool(self._tuner.carried.adapted)

    def _refused(self, key: str, met: Sequence[str]) -> Iterator[Finding]:
        kind = self._tuner.tuner_type
        wrong = [
            module for module in met if not any(adaptable(weight, kind) for weight in self._by_module.get(module, ()))
        ]
        if wrong:
            what = f"tuner.{key}: {_some(wrong)} cannot bear an adapter of tuner_type: {kind}, and the run would stop"
            remedy = (
                "name linear modules alone: model.visual.merger.linear_fc[12], say, in place of model.visual.merger"
            )
            yield self._finding("tuner-target-kind", "error", key, what, remedy, ", ".join(wrong[:200]))

    def saved(self) -> Iterator[Finding]:
        """Modules that are trained in full, or should be."""
        names = self._tuner.modules_to_save
        if self._tuner.tuner_type == "full" or not names:
            return
        for name in names:
            if not any(module.endswith(name) for module in self._modules):
                guess = self._nearest(name)
                what = f"tuner.modules_to_save: the base has no module {name} with weights"
                remedy = f"did you mean {guess}?" if guess and guess != name else "take it out"
                yield self._finding("tuner-save-absent", "error", "modules_to_save", what, remedy, self._shape())
        yield from self._mergers()
        copied = {weight.tower for weight in self._table.weights if weight.copied}
        tied = any(weight.shared for weight in self._table.weights)
        head = any(weight.name == HEAD and weight.copied for weight in self._table.weights)
        embedding = any(weight.copied and "embed_tokens" in weight.name for weight in self._table.weights)
        if tied and head != embedding:
            one, other = ("lm_head", "embed_tokens") if head else ("embed_tokens", "lm_head")
            what = f"tuner.modules_to_save: {one} is trained in full, and {other}, which is the same tensor, is not"
            remedy = f"name {other}, too, or neither; after a merge set tie_word_embeddings: false in config.json"
            evidence = f"tie_word_embeddings in config.json; copies in {', '.join(sorted(copied))}"
            yield self._finding("tuner-save-tied", "warning", "modules_to_save", what, remedy, evidence)

    def _mergers(self) -> Iterator[Finding]:
        states: dict[str, set[str]] = {}
        for weight in self._table.weights:
            if found := _MERGER.match(weight.name):
                state = "copied" if weight.copied else "adapted" if weight.learns else "kept" if weight.kept else ""
                states.setdefault(found.group(), set()).add(state)
        whole = [module for module, state in states.items() if state == {"copied"}]
        left = [module for module, state in states.items() if state == {""}]
        if whole and left:
            what = (
                f"tuner.modules_to_save lists {len(whole)} of the aligner's {len(states)} mergers: {', '.join(left)} "
                f"{'stays as it is' if len(left) == 1 else 'stay as they are'}"
            )
            remedy = f"add {', '.join(left)}, unless only a part of the aligner is meant to train"
            yield self._finding("tuner-save-partial", "warning", "modules_to_save", what, remedy)

    def sizes(self) -> Iterator[Finding]:
        """Settings of an adapter that do not fit the modules which it goes on."""
        kind = self._tuner.tuner_type
        adapted = [weight for weight in self._table.weights if weight.adapter_size and weight.linear]
        if kind == "fourierft":
            count = int(value_of(self._plan.arguments, "fourier_n_frequency"))
            small = [weight.module for weight in adapted if weight.elements < count]
            if small:
                least = min(weight.elements for weight in adapted)
                what = f"tuner.fourier_n_frequency: {count} is more than {_some(small)} have elements"
                remedy = f"write fourier_n_frequency: {least} or less, or leave these modules out"
                yield self._finding("tuner-adapter-size", "error", "fourier_n_frequency", what, remedy)
        if kind == "boft":
            side, blocks = (
                int(value_of(self._plan.arguments, "boft_block_size")),
                int(value_of(self._plan.arguments, "boft_block_num")),
            )
            if bool(side) == bool(blocks):
                what = "tuner.boft_block_size and boft_block_num: exactly one of the two has to be above 0"
                yield self._finding("tuner-adapter-size", "error", "boft_block_size", what, "write 0 for the other")
                return
            odd = [weight.module for weight in self._table.weights
                   if weight.adapter_size and weight.shape[1] % (side or blocks)]  # fmt: skip
            if odd:
                key = "boft_block_size" if side else "boft_block_num"
                what = f"tuner.{key}: {side or blocks} does not divide what {_some(odd)} read"
                yield self._finding("tuner-adapter-size", "error", key, what, f"write {key}: 4, or another divisor")

    def nothing(self) -> Iterator[Finding]:
        """No parameter that trains."""
        if not self._table.total:
            what = "nothing trains: the recipe reaches no parameter of this base"
            remedy = "write false for the freeze flag of what should train, or name it in target_modules"
            yield self._finding("tuner-nothing", "error", "tuner_type", what, remedy, self._shape())

    def whole(self) -> Iterator[Finding]:
        """Full tuning of a small part, whose checkpoints hold everything."""
        if self._tuner.tuner_type != "full" or not 0 < self._table.share < _WHOLE_MODEL:
            return
        every, part = self._table.total + self._table.frozen, self._table.total
        what = (
            f"full tuning trains {self._table.share:.1%} of the parameters, and every checkpoint holds all "
            f"{every:,} ({every * 2 / 1e9:.3g} GB in bf16)"
        )
        remedy = (
            "to save the trained part alone write tuner_type: lora, target_regex: '^$' and its modules in "
            f"modules_to_save (the recipe stage1_aligner_full): {part * 2 / 1e9:.3g} GB"
        )
        yield self._finding("tuner-saves-all", "note", "tuner_type", what, remedy)


def _suffix(name: str) -> Callable[[str], bool]:
    """Whether a module is the one that a target names, by the whole of its name or the last words of it."""
    return lambda module: module == name or module.endswith(f".{name}")


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


RULES: tuple[Rule, ...] = (
    Rule(
        id="tuner-target-absent",
        severity="error",
        means="a target names no module of this base",
        why="peft stops a run none of whose targets exists, and leaves out in silence one name among others that does "
        "not: what it should have reached stays untrained. Names that no Qwen3-VL has are refused when the recipe is "
        "read; this rule looks at the base's own tensors, where an index may be too high, or experts take the place of "
        "a plain MLP. It is a warning where other targets exist.",
        remedy="Write the names as the base has them (vltool inspect-ckpt lists them).",
        covers="health check: Adapter config correct (for LoRA mode)",
    ),
    Rule(
        id="tuner-target-kind",
        severity="error",
        means="a target is a module that no adapter goes on",
        why="A pattern such as .*merger.* matches the merger itself, its norm and its linear layers; peft stops at the "
        "first that is no linear layer.",
        remedy="Let the pattern end in the names of linear modules: linear_fc1, linear_fc2, qkv, attn.proj, q_proj.",
        covers="health check: Adapter config correct (for LoRA mode)",
    ),
    Rule(
        id="tuner-save-absent",
        severity="error",
        means="modules_to_save names a module that this base does not have",
        why="peft ignores the name: nothing is trained and saved under it, and the audit before step 1 stops the run.",
        remedy="Write the module's name as the base has it.",
        covers="health check: `modules_to_save` lists any full-tuned modules (if used)",
    ),
    Rule(
        id="tuner-save-partial",
        severity="warning",
        means="modules_to_save lists some of the aligner's mergers, and the others do not train",
        why="Qwen3-VL's aligner is the merger and every deepstack merger. Those that are not listed keep their "
        "weights, and feed the language model features of another kind than the ones that were tuned.",
        remedy="List all: model.visual.merger and model.visual.deepstack_merger_list.0, .1, .2.",
        covers="health check: `modules_to_save` lists any full-tuned modules (if used)",
    ),
    Rule(
        id="tuner-save-tied",
        severity="warning",
        means="of a tied head and embedding only one is trained in full",
        why="They are one tensor in the base. A copy of one lets them drift apart; merged into a model that ties them, "
        "one of the two versions is lost.",
        remedy="Name both in modules_to_save, or neither.",
        covers="health check: `modules_to_save` lists any full-tuned modules (if used)",
        source="https://github.com/huggingface/peft/issues/2777",
    ),
    Rule(
        id="tuner-adapter-size",
        severity="error",
        means="the adapter's settings do not fit the modules that it goes on",
        why="BOFT cuts a module's input into blocks of one size, which has to divide it; FourierFT learns as many "
        "coefficients as fourier_n_frequency says of a matrix that has to have as many. peft stops at the first "
        "module that does not fit.",
        remedy="Write a block size that divides every width, or fewer frequencies.",
        covers="health check: Adapter config correct (for LoRA mode)",
    ),
    Rule(
        id="tuner-nothing",
        severity="error",
        means="no parameter of the base trains",
        why="The run would stop before its first step.",
        remedy="Write false for the freeze flag of what should train, or name it in target_modules or modules_to_save.",
        covers="troubleshooting: Zero gradients for vision/aligner",
    ),
    Rule(
        id="tuner-saves-all",
        severity="note",
        means="checkpoints hold the whole model although little of it trains",
        why="Full tuning of the aligner alone saves everything, gigabytes a checkpoint, where an adapter with "
        "modules_to_save saves what was trained.",
        remedy="Extend stage1_aligner_full, or write tuner_type: lora with modules_to_save.",
        covers="troubleshooting: Full model saved instead of adapter",
    ),
)
"""Rules of this module."""
