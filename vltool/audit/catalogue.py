"""Every rule there is, by what it looks at."""

from __future__ import annotations

from vltool.audit import (
    base_rules,
    checkpoint_catalogue,
    data_catalogue,
    deep_rules,
    host_rules,
    memory_rules,
    recipe_rules,
    record_rules,
    target_catalogue,
    target_rules,
    tokenizer_rules,
)
from vltool.audit.finding import Rule, by_id

GROUPS: dict[str, tuple[Rule, ...]] = {
    "Targets": target_catalogue.RULES,
    "Recipes": (*recipe_rules.RULES, *target_rules.RULES, *deep_rules.RULES),
    "Base models and teachers": (*base_rules.RULES, *tokenizer_rules.RULES),
    "Records and mixtures": (*data_catalogue.RULES, *record_rules.RULES),
    "Hosts": host_rules.RULES,
    "Memory": memory_rules.RULES,
    "Checkpoints": checkpoint_catalogue.CHECKPOINT_RULES,
    "Assertions on checkpoints": checkpoint_catalogue.EXPECT_RULES,
}
"""Heading -> rules, in the order in which an operator meets them. A module of rules has one line here."""

RULES: dict[str, Rule] = by_id(rule for rules in GROUPS.values() for rule in rules)
"""Id -> rule."""
