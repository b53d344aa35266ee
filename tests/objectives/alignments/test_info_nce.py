"""InfoNCE against torch's own cross-entropy over the full matrix of cosines."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pad_dist.objectives.alignments import info_nce as module
from pad_dist.objectives.alignments.info_nce import contrast, info_nce
from tests.objectives.alignments.alignment_worker import make, solve

SHAPES = pytest.mark.parametrize(("seed", "items", "dim"), [(0, 1, 3), (1, 2, 1), (2, 9, 4), (3, 40, 16)])


def oracle(text: Tensor, anchor: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """CLIP's: each text among all anchors, each anchor among all texts; every item once."""
    logits = F.normalize(text, dim=1) @ F.normalize(anchor, dim=1).T / temperature
    own = torch.arange(len(text))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@SHAPES
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_each_item_once_is_the_symmetric_cross_entropy(
    seed: int, items: int, dim: int, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    text, anchor, weights = make(seed, items, dim, 1)
    samples = (text, anchor, torch.ones_like(weights))
    ours, theirs = (solve(partial(loss, temperature=temperature), *samples) for loss in (info_nce, oracle))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@SHAPES
def test_copies_of_an_item_are_one_and_no_negatives_of_each_other(seed: int, items: int, dim: int) -> None:
    text, anchor, _ = make(seed, items, dim, 1)
    copies = torch.arange(items) % 3 + 1
    item = torch.arange(items).repeat_interleave(copies)
    once = solve(partial(oracle, temperature=0.2), text, anchor, torch.ones(items))
    several = solve(partial(info_nce, temperature=0.2), text[item], anchor[item], 1 / copies[item].double())
    torch.testing.assert_close(several[0], once[0], rtol=1e-9, atol=1e-12)
    for found, expected in zip(several[1:], once[1:], strict=True):
        summed = torch.zeros_like(expected).index_add_(0, item, found)
        torch.testing.assert_close(summed, expected, rtol=1e-9, atol=1e-12)


def fine_grained(text: Tensor, anchor: Tensor, weights: Tensor, temperature: float, parts: int) -> Tensor:
    """Pair by pair: each part of a question finds the candidate's part that is most like it."""
    text, anchor = F.normalize(text, dim=1), F.normalize(anchor, dim=1)

    def similarity(question: Tensor, candidate: Tensor) -> Tensor:
        return sum(max(a @ b for b in candidate.chunk(parts)) for a in question.chunk(parts)) / temperature

    losses = []
    for questions, answers in ((text, anchor), (anchor, text)):
        logits = torch.stack([torch.stack([similarity(q, a) for a in answers]) for q in questions])
        losses.append(F.cross_entropy(logits, torch.arange(len(text))))
    return (losses[0] + losses[1]) / 2


@pytest.mark.parametrize(("seed", "items", "dim", "parts"), [(0, 1, 6, 3), (1, 5, 6, 2), (2, 7, 8, 4), (3, 4, 3, 1)])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_of_sub_vectors_the_best_match_counts(
    seed: int, items: int, dim: int, parts: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    text, anchor, weights = make(seed, items, dim, 1)
    samples = (text - 3, anchor, torch.ones_like(weights))
    ours = solve(partial(info_nce, temperature=0.3, sub_vectors=parts), *samples)
    theirs = solve(partial(fine_grained, temperature=0.3, parts=parts), *samples)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@SHAPES
def test_a_contrast_asks_one_way(seed: int, items: int, dim: int) -> None:
    def one_way(questions: Tensor, answers: Tensor, weights: Tensor) -> Tensor:
        logits = F.normalize(questions, dim=1) @ F.normalize(answers, dim=1).T / 0.2
        return F.cross_entropy(logits, torch.arange(len(questions)))

    text, anchor, _ = make(seed, items, dim, 1)
    samples = (anchor, text, torch.ones(items))
    ours, theirs = solve(partial(contrast, temperature=0.2), *samples), solve(one_way, *samples)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_without_samples_it_is_zero_and_vectors_of_zeros_stay_finite() -> None:
    text, anchor, weights = make(4, 3, 2, 1)
    assert solve(partial(info_nce, temperature=0.2), text[:0], anchor[:0], weights[:0])[0] == 0
    text[1] = anchor[2] = 0
    for value in solve(partial(info_nce, temperature=0.2), text, anchor, torch.ones(3)):
        assert value.abs().max() < 100
