"""What a mixture says about the records of one dataset: prompts, how many objects, and whether they are augmented."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from vltool.data.conversation import Prompts
from vltool.data.fields import reserved_in
from vltool.data.record import Record
from vltool.errors import BadContent, Problem

KEY = "fusion"
"""Key of `metadata` under which a record that `vltool fuse` wrote brings its policy."""


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the records of a dataset become samples, as far as datasets of a mixture may differ."""

    dataset: str = ""
    """In its mixture; empty for a file that is read by itself."""
    user_prompt: str | None = None
    """None for the run's own."""
    system_prompt: str | None = None
    """None for the run's own; empty for none."""
    augmentation_enabled: bool = True
    curriculum_enabled: bool = True
    max_objects: Annotated[int, Meta(ge=1)] | None = None
    """Objects of a record that are described."""
    seed: Annotated[int, Meta(ge=0)] | None = None
    """Of the draw of these objects; None for the run's own."""

    def prompts(self, default: Prompts) -> Prompts:
        """The prompts of its records, where the run's are `default`."""
        user = default.user if self.user_prompt is None else self.user_prompt
        return Prompts(user, default.system if self.system_prompt is None else self.system_prompt)


def policy_of(record: Record, otherwise: Policy) -> Policy:
    """A record's own policy where `vltool fuse` wrote one, else that of its dataset.

    Mixed anew, it is its dataset's, but for prompts that this does not bring: what `vltool fuse` makes of it too.
    Raises BadContent, without a place, for one that `fuse` did not write.
    """
    if record.metadata is None or KEY not in record.metadata:
        return otherwise
    try:
        own = msgspec.convert(record.metadata[KEY], Policy)
    except msgspec.ValidationError as error:
        what = f"metadata.{KEY} is none that vltool fuse wrote: {error}"
        do = f"name data of your own otherwise: metadata.{KEY} says how a mixture is read"
        raise BadContent(Problem(what, do, id="record-field")) from error
    for name, text in (("user_prompt", own.user_prompt), ("system_prompt", own.system_prompt)):
        if found := reserved_in(text or ""):
            what = f"metadata.{KEY}.{name} contains {found}, which the model's template takes for an instruction"
            raise BadContent(Problem(what, "remove it; images are placed by vltool", id="record-field"))
    if not otherwise.dataset:
        return own
    user = own.user_prompt if otherwise.user_prompt is None else otherwise.user_prompt
    system = own.system_prompt if otherwise.system_prompt is None else otherwise.system_prompt
    return msgspec.structs.replace(otherwise, user_prompt=user, system_prompt=system)


def most_text(record: Record, most: int | None) -> Record:
    """A record with those of its objects, so many at most, that take the most text."""
    if most is None or len(record.objects) <= most:
        return record
    lengths = [len(item.desc) + 10 * len(item.points) for item in record.objects]
    kept = sorted(sorted(range(len(lengths)), key=lambda i: -lengths[i])[:most])
    return msgspec.structs.replace(record, objects=tuple(record.objects[i] for i in kept))
