"""Two checkpoints -> what one has that the other has not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vltool.checkpoint.architecture import plain_name
from vltool.checkpoint.inspection import Inspection, Tensor
from vltool.checkpoint.values import streamed


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How B differs from A."""

    fields: dict[str, tuple[Any, Any]]
    """Kind, base and the adapter's configuration: A's and B's value of those that differ."""
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    changed: dict[str, tuple[str, str]]
    """Tensors of another type or shape: A's and B's."""
    values: tuple[str, ...] | None
    """Tensors of equal type and shape whose bytes differ; None where nobody looked."""

    def __bool__(self) -> bool:
        return bool(self.fields or self.only_a or self.only_b or self.changed or self.values)

    def to_json(self) -> dict[str, Any]:
        """The difference as one JSON object."""
        return {
            "fields": {name: {"a": a, "b": b} for name, (a, b) in self.fields.items()},
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "changed": {name: {"a": a, "b": b} for name, (a, b) in self.changed.items()},
            "values": None if self.values is None else list(self.values),
        }


def difference(a: Inspection, b: Inspection, *, values: bool = False) -> Difference:
    """Compare tensors by their names in the base's terms, and what the adapters say of themselves.

    values: read the tensors, too. Raises BadContent for a file that cannot be read.
    """
    ours, theirs = _by_plain_name(a), _by_plain_name(b)
    both = [name for name in ours if name in theirs]
    changed = {name: (_form(ours[name]), _form(theirs[name])) for name in both if ours[name].info != theirs[name].info}
    same = [name for name in both if name not in changed]
    return Difference(
        fields=_fields(a, b),
        only_a=tuple(sorted(ours.keys() - theirs.keys())),
        only_b=tuple(sorted(theirs.keys() - ours.keys())),
        changed=changed,
        values=tuple(name for name in same if not _equal(ours[name], theirs[name])) if values else None,
    )


def _by_plain_name(inspection: Inspection) -> dict[str, Tensor]:
    return {plain_name(name): tensor for name, tensor in inspection.tensors.items()}


def _fields(a: Inspection, b: Inspection) -> dict[str, tuple[Any, Any]]:
    ours, theirs = _told(a), _told(b)
    names: Sequence[str] = list(dict.fromkeys((*ours, *theirs)))
    return {name: (ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)}


def _told(inspection: Inspection) -> dict[str, Any]:
    config = {} if inspection.config is None else asdict(inspection.config)
    return {"adapter": config.pop("kind", None), **config, "kind": inspection.kind, "base": inspection.base_name}


def _form(tensor: Tensor) -> str:
    return f"{tensor.info.dtype} {' × '.join(map(str, tensor.info.shape)) or 'scalar'}"


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    pieces = zip(streamed({"": ours}), streamed({"": theirs}), strict=True)
    return all(np.array_equal(mine, other) for (*_, mine), (*_, other) in pieces)
