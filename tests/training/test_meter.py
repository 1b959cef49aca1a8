"""Means of a window are means over its label tokens, of the text that they speak of."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from vltool.training.losses import IGNORE, distillation_loss
from vltool.training.meter import Losses, Meter
from vltool.training.ranks import Ranks


def test_entropy_is_that_of_label_tokens_the_student_did_not_write():
    generator = torch.Generator().manual_seed(1)
    head_VH = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    meter, entropies = Meter(None), []
    for count, source in ((5, "dataset"), (2, "teacher"), (9, "student")):
        hidden_NH = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        labels_N = torch.arange(count) % 7
        labels_N[0] = IGNORE
        text = distillation_loss(hidden_NH, labels_N, head_VH)
        meter.add(Losses(text, {}, text.tokens, 1.0), patches=0, with_kd=False, source=source)
        if source != "student":
            entropies.append(torch.distributions.Categorical(logits=hidden_NH[1:] @ head_VH.T).entropy())
    means = meter.means(Ranks(), parts=False)
    assert means["entropy"] == pytest.approx(float(torch.cat(entropies).mean()))


def test_a_student_that_wrote_everything_shows_no_entropy():
    text = distillation_loss(torch.ones(2, 4), torch.tensor([0, 1]), torch.ones(3, 4))
    meter = Meter(None)
    meter.add(Losses(text, {}, text.tokens, 1.0), patches=0, with_kd=False, source="student")
    assert not {"entropy", "token_acc", "sft_loss"} & meter.means(Ranks(), parts=False).keys()


def test_geometries_are_means_over_the_window_and_absent_where_it_has_none():
    generator = torch.Generator().manual_seed(2)
    head_VH = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    meter, ce = Meter(None), []
    # Boxes in both batches, a line in the first; a third batch of which nobody knows.
    for number_N in ([0, 1, 1, 3], [1, 0, 1, 1], None):
        hidden_NH, labels_N = torch.randn(4, 4, generator=generator, dtype=torch.float64), torch.arange(4)
        group_N = None if number_N is None else torch.tensor(number_N)
        text = distillation_loss(hidden_NH, labels_N, head_VH, group_N=group_N, group_count=4)
        meter.add(Losses(text, {}, text.tokens, 1.0), patches=0, with_kd=False)
        if group_N is not None:
            ce.append(torch.nn.functional.cross_entropy(hidden_NH @ head_VH.T, labels_N, reduction="none"))
    means = meter.means(Ranks(), parts=False)
    boxes = torch.cat((ce[0][1:3], ce[1][[0, 2, 3]]))
    assert means["sft_loss_bbox"] == pytest.approx(float(boxes.mean()))
    assert means["sft_loss_line"] == pytest.approx(float(ce[0][3]))
    assert {"token_acc_bbox", "token_acc_line"} <= means.keys()
    assert not {"sft_loss_poly", "token_acc_poly"} & means.keys()
