"""What alignment does to what the ID model knew (docs/method.md, "Forgetting").

Three things of an align stage beside the pretrain stage that it came from: how well the aligned table scores without
text, with its own encoder; how well the pretrain table and encoder score, which stay as they were; and whether items
keep their order of distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import Tensor

from pad_dist.data.batches import Rows
from pad_dist.data.hashing import DISTANCE_SAMPLE, hash_ids
from pad_dist.distributed.context import DistributedContext
from pad_dist.evaluation.evaluate import Metrics, evaluate
from pad_dist.evaluation.report import SPLITS
from pad_dist.model.gate import BINS
from pad_dist.model.recommender import Recommender
from pad_dist.stages.spec import StageSpec
from pad_dist.stages.stage_runtime import StageRuntime, load_trained

ITEMS_PER_BIN = 100
OTHERS = 500
"""Items that each item's distances are taken to."""
Vectors = NDArray[np.float64]


class TableAlone(Recommender):
    """The ID part of an aligned expert: the rows of its table, read and predicted as they are, with its encoder."""

    def __init__(self, runtime: StageRuntime) -> None:
        super().__init__(("id",), runtime.config.model, 0)
        self.expert("id").encoder.load_state_dict(runtime.model.expert("aligned").encoder.state_dict())
        self.to(next(runtime.model.parameters()))

    def encode(self, inputs: Tensor, lengths: Tensor, rows: Rows) -> Tensor:
        """See `Recommender.encode`."""
        return super().encode(inputs, lengths, _as_id(rows))

    def catalogue(self, rows: Rows, gated: bool = True) -> Tensor:
        """See `Recommender.catalogue`."""
        return super().catalogue(_as_id(rows), gated)


def measure_forgetting(spec: StageSpec, before: dict[str, Metrics], context: DistributedContext) -> dict[str, Any]:
    """Compare a trained align stage with the stage that it is aligned from. Collective.

    Args:
        before: metrics of that stage's ID expert, by split.

    Returns:
        By split, metrics `before`, of the `frozen_original`, evaluated now, and of the `aligned_table` alone; and
        `kendall_tau`, see `distance_order`.

    Raises:
        UserError: one of the stages is not trained on these settings and data.
    """
    assert spec.aligned_from is not None
    original, aligned = load_trained(spec.aligned_from, context), load_trained(spec, context)
    original.model.eval()
    alone = TableAlone(aligned).eval()
    textless = replace(aligned, text=None)  # the table alone is looked up
    scores: dict[str, Any] = {
        split: {
            "before": before[split],
            "frozen_original": evaluate(original, original.model, split, ["id"])["id"],
            "aligned_table": evaluate(textless, alone, split, ["id"])["id"],
        }
        for split in SPLITS
    }
    by_bin, others = sample_items(original, spec.config.seed)
    rows = [_rows(original, "id", [*by_bin, others]), _rows(textless, "aligned", [*by_bin, others])]
    return {**scores, "kendall_tau": distance_order(rows[0], rows[1])}


def sample_items(
    runtime: StageRuntime, seed: int, per_bin: int = ITEMS_PER_BIN, others: int = OTHERS
) -> tuple[list[Tensor], Tensor]:
    """Items in use, at random: up to `per_bin` of each bin 1 to 10, and up to `others` of all. Collective.

    They are those with the smallest hash, so that the world size does not matter. Ascending.
    """
    bins = runtime.bins.local[:, 0].cpu().numpy()
    items = np.arange(runtime.bins.start, runtime.bins.start + len(bins))
    wanted = [(bins == number, per_bin) for number in range(1, BINS)] + [(bins > 0, others)]
    own = [
        items[kept][np.argsort(hash_ids(seed, DISTANCE_SAMPLE, number, items[kept]))[:most]]
        for number, (kept, most) in enumerate(wanted)
    ]
    sampled = []
    for number, parts in enumerate(zip(*runtime.context.gather(own), strict=True)):
        union = np.concatenate(parts)
        chosen = union[np.argsort(hash_ids(seed, DISTANCE_SAMPLE, number, union))[: wanted[number][1]]]
        sampled.append(torch.from_numpy(np.sort(chosen)).to(runtime.context.device))
    return sampled[:-1], sampled[-1]


def distance_order(before: Sequence[Vectors], after: Sequence[Vectors]) -> dict[str, Any]:
    """Whether the others are in the same order of Euclidean distance from an item, before and after.

    Args:
        before, after: [n, D] rows of the items of bin 1, 2, ... and, last, of the others, in the same order.

    Returns:
        `by_bin`: of each bin the mean over its items of Kendall's tau-b, from -1 to 1, and how many items it is of;
        `mean`: over the items of all bins. None where there is no item whose distances differ.
    """
    taus = [
        [_tau(_distances(a, before[-1]), _distances(b, after[-1])) for a, b in zip(x, y, strict=True)]
        for x, y in zip(before[:-1], after[:-1], strict=True)
    ]
    kept = [[tau for tau in of_bin if np.isfinite(tau)] for of_bin in taus]  # NaN: all distances are equal
    by_bin = [{"bin": number, "tau": _mean(of_bin), "items": len(of_bin)} for number, of_bin in enumerate(kept, 1)]
    return {"mean": _mean([tau for of_bin in kept for tau in of_bin]), "by_bin": by_bin}


def _tau(before: Vectors, after: Vectors) -> float:
    return float(kendalltau(before, after).statistic)


def _distances(item: Vectors, others: Vectors) -> Vectors:
    return np.asarray(np.linalg.norm(others - item, axis=1))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


@torch.no_grad()
def _rows(runtime: StageRuntime, table: str, samples: Sequence[Tensor]) -> list[Vectors]:
    """Rows of the table for each sample of items, on every rank. Collective."""
    return [runtime.rows(items)[table].double().cpu().numpy() for items in samples]


def _as_id(rows: Rows) -> Rows:
    return {**rows, "id": rows["aligned"]}
