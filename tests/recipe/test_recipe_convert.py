"""Conversion agrees with msgspec, whose types it explains."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import inspect as types

from vltool.errors import Problem, Where
from vltool.recipe.convert import convert
from vltool.recipe.load import KeyNode, MapNode, Node, ScalarNode, SeqNode
from vltool.recipe.schema import OWN, Augmentation, FeatureTerm, Section, VisualKd

HERE = Where("r.yaml", 1, 1)
STRUCTS: tuple[type[Section], ...] = (*OWN.values(), Augmentation, FeatureTerm, VisualKd)
FIELDS = [(struct, field) for struct in STRUCTS for field in msgspec.structs.fields(struct)]
VALUES: list[Any] = [
    True, False, 0, 1, -1, 8, 10**20, 0.0, 0.5, 1.0, -0.5, 1.5, "", "all", "auto", "gkd", "mse", "none", "error",
    "standard", "gkd_monitor", "8", "true", "on", "1e-4", [], ["a"], [1], ["a", 1], [{}], [{"a": 1}], {}, {"a": "b"},
    {"enabled": True}, {"enabled": 1}, {"weight": 1}, {"vit": {"weight": -1}}, {"vit": {"distance": "cosine"}},
    {"ops": [1]}, {"a": 1},
]  # fmt: skip


def _node(value: Any) -> Node:
    if isinstance(value, dict):
        return MapNode(HERE, tuple((KeyNode(key, HERE), _node(inner)) for key, inner in value.items()))
    if isinstance(value, list):
        return SeqNode(HERE, tuple(map(_node, value)))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return ScalarNode(HERE, value, text, plain=not isinstance(value, str))


@pytest.mark.parametrize(
    ("struct", "field"), FIELDS, ids=lambda part: getattr(part, "name", getattr(part, "__name__", ""))
)
def test_refused_here_is_refused_there(struct: type[Section], field: msgspec.structs.FieldInfo) -> None:
    wanted = {inner.encode_name: inner.type for inner in types.type_info(struct).fields}[field.encode_name]
    for value in VALUES:
        problems: list[Problem] = []
        converted = convert(_node(value), wanted, "x.y", problems)
        try:
            msgspec.convert(value, field.type, strict=True)
        except msgspec.ValidationError:
            assert problems, (value, "accepted here, refused by msgspec")
        else:
            assert not problems, (value, problems)
            assert converted == value


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_key_is_described(struct: type[Section]) -> None:
    for field in types.type_info(struct).fields:
        assert isinstance(field.type, types.Metadata)
        assert field.type.extra_json_schema
        assert field.type.extra_json_schema["description"]
