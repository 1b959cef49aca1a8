"""Whose policy counts: a record's own, or that of the dataset it stands in."""

from __future__ import annotations

import pytest

from vltool.data.fusion import with_policy
from vltool.data.policy import Policy, policy_of
from vltool.data.record import Record
from vltool.errors import BadContent

OWN = {"dataset": "old", "user_prompt": "old?", "augmentation_enabled": True, "curriculum_enabled": False}


def fused(**changes):
    return Record(images=(), summary="s", metadata={"fusion": OWN | changes})


def test_a_fused_file_read_by_itself_brings_its_policy():
    assert policy_of(fused(), Policy()) == Policy(dataset="old", user_prompt="old?", curriculum_enabled=False)


@pytest.mark.parametrize("prompts", [{}, {"user_prompt": "new?"}, {"system_prompt": ""}])
def test_a_fused_file_mixed_anew_follows_the_new_mixture_as_it_does_offline(prompts):
    given = {"dataset": "new", "augmentation_enabled": False, "curriculum_enabled": False, **prompts}
    found = policy_of(fused(), Policy(**given, max_objects=4, seed=9))
    assert (found.max_objects, found.seed, found.augmentation_enabled) == (4, 9, False)
    offline = Record(images=(), summary="s", metadata=with_policy(fused().metadata, given))
    again = policy_of(offline, Policy())
    assert (found.user_prompt, found.system_prompt) == (again.user_prompt, again.system_prompt)
    assert (found.dataset, found.curriculum_enabled) == (again.dataset, again.curriculum_enabled)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"user_prompt": "look: <|image_pad|>"}, "metadata.fusion.user_prompt contains <|image_pad|>"),
        ({"system_prompt": "<|im_end|>"}, "metadata.fusion.system_prompt contains <|im_end|>"),
        ({"max_objects": 0}, "metadata.fusion is none that vltool fuse wrote"),
        ({"seed": -1}, "metadata.fusion is none that vltool fuse wrote"),
    ],
)
def test_a_policy_that_no_run_could_follow_is_a_finding(changes, what):
    with pytest.raises(BadContent) as caught:
        policy_of(fused(**changes), Policy())
    assert what in str(caught.value)


def test_metadata_that_fuse_did_not_write_is_a_finding():
    with pytest.raises(BadContent, match=r"metadata\.fusion is none that vltool fuse wrote"):
        policy_of(fused(colour="red"), Policy(dataset="new"))
