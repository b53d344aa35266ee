"""InfoNCE: which text belongs to which item, over the samples of all ranks (docs/method.md, "InfoNCE")."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.config import FineGrainedConfig, InfoNceConfig
from pad_dist.objectives.alignments.base import ALIGNMENTS, Alignment
from pad_dist.objectives.samples import gather, unit

_CHUNK_ELEMENTS = 1 << 20
"""Products in memory at once."""


@ALIGNMENTS.register(InfoNceConfig)
class InfoNce(Alignment):
    """See `info_nce`, on full vectors."""

    def __call__(self, text: Tensor, row: Tensor, weights: Tensor) -> Tensor:
        return info_nce(text, row, weights, self._config.temperature, self._group)


@ALIGNMENTS.register(FineGrainedConfig)
class FineGrained(Alignment):
    """See `info_nce`, on sub-vectors (CTRL)."""

    def __call__(self, text: Tensor, row: Tensor, weights: Tensor) -> Tensor:
        return info_nce(text, row, weights, self._config.temperature, self._group, self._config.sub_vectors)


def info_nce(
    text: Tensor,
    anchor: Tensor,
    weights: Tensor,
    temperature: float,
    group: dist.ProcessGroup | None = None,
    sub_vectors: int = 1,
) -> Tensor:
    """This rank's share of the symmetric cross-entropy between t and e, both L2-normalised, as in CLIP.

    Item u counts `weights[u]` times, as a question and among the candidates of every question. With the weights of
    `once` an item that occurs on several ranks counts as one, and is no negative of itself. Every rank must call.

    Args:
        text: [U, D] t.
        anchor: [U, D] e.
        weights: [U], summing over ranks to n.
        temperature: divides the similarities.
        group: defaults to all ranks, if torch.distributed is initialised.
        sub_vectors: how many each vector is cut into (CTRL, arXiv 2306.02841): the similarity of a question and a
            candidate is the sum over the question's sub-vectors of the largest inner product with one of the
            candidate's. For 1, full vectors, it is the cosine.

    Returns:
        [] fp32 (fp64 if the inputs are), value and gradient split over ranks as in `mk_mmd`. 0 if n = 0.
    """
    of_texts = contrast(text, anchor, weights, temperature, group, sub_vectors)
    return (of_texts + contrast(anchor, text, weights, temperature, group, sub_vectors)) / 2


def contrast(
    questions: Tensor,
    answers: Tensor,
    weights: Tensor,
    temperature: float,
    group: dist.ProcessGroup | None = None,
    sub_vectors: int = 1,
) -> Tensor:
    """One half of `info_nce`: each of the questions [U, D] among all answers [U, D]; answer u belongs to question u."""
    dtype = torch.promote_types(torch.promote_types(questions.dtype, answers.dtype), torch.float32)
    questions, answers = unit(questions.to(dtype)), unit(answers.to(dtype))
    weights = weights.to(dtype)
    dim = questions.shape[1]
    samples = gather(torch.cat([questions, answers, weights.unsqueeze(1)], dim=1), group)
    all_questions, all_answers, all_weights = samples[:, :dim], samples[:, dim:-1], samples[:, -1]
    log_weights = all_weights.log()

    def log_sums(rows: Tensor) -> Tensor:
        """For this rank's questions: log of sum_v w_v exp s(rows_u, answer_v)."""
        return (similarities(rows, all_answers, sub_vectors) / temperature + log_weights).logsumexp(dim=1)

    def shares(rows: Tensor) -> Tensor:
        """For this rank's answers: sum_v w_v p_vu, their shares in the sums of all questions."""
        logits = similarities(all_questions, rows, sub_vectors) / temperature
        return (logits + (log_weights - all_norms).unsqueeze(1)).exp().sum(dim=0)

    size = max(1, _CHUNK_ELEMENTS // max(1, len(samples) * sub_vectors**2))
    norms, question_pull = _values_and_gradients(log_sums, questions, size)
    all_norms = gather(norms.unsqueeze(1), group).squeeze(1)
    _, answer_pull = _values_and_gradients(shares, answers, size)
    n = all_weights.sum().clamp(min=1)
    paired = _paired_similarities(questions, answers, sub_vectors) / temperature
    # A local answer is also a candidate of other ranks' questions: the pulls hold its effect on the global sums.
    pulled = weights @ ((questions * question_pull).sum(dim=1) + (answers * answer_pull).sum(dim=1))
    share: Tensor = (weights @ (norms - paired) + pulled - pulled.detach()) / n
    return share


def similarities(questions: Tensor, candidates: Tensor, sub_vectors: int) -> Tensor:
    """[Q, D] and [C, D] -> [Q, C], see `info_nce`."""
    if sub_vectors == 1:
        return questions @ candidates.T
    products = (
        _sub_vectors(questions, sub_vectors).flatten(0, 1) @ _sub_vectors(candidates, sub_vectors).flatten(0, 1).T
    )
    best: Tensor = products.view(len(questions), sub_vectors, len(candidates), sub_vectors).amax(dim=3).sum(dim=1)
    return best


def _paired_similarities(questions: Tensor, answers: Tensor, sub_vectors: int) -> Tensor:
    """[U, D] each -> [U], the similarity of question u and answer u."""
    products = _sub_vectors(questions, sub_vectors) @ _sub_vectors(answers, sub_vectors).transpose(1, 2)
    return products.amax(dim=2).sum(dim=1)


def _sub_vectors(vectors: Tensor, count: int) -> Tensor:
    return vectors.reshape(len(vectors), count, vectors.shape[1] // count)


def _values_and_gradients(of: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[U] values, one per row, and the gradients [U, D] of each in its row; `size` rows at once."""
    values, gradients = [], []
    for chunk in rows.detach().split(size):
        chunk.requires_grad_()
        with torch.enable_grad():
            value = of(chunk)
        (gradient,) = torch.autograd.grad(value.sum(), chunk)
        values.append(value.detach())
        gradients.append(gradient)
    return torch.cat(values), torch.cat(gradients)
