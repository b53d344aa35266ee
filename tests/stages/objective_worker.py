"""A tiny model in memory: what the objective's tests compute with, here and on several ranks."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from pad_dist.config import Config
from pad_dist.data.batches import Batch, Rows
from pad_dist.stages.objective import StageObjective
from tests.support.stages import STAGES, stage_of

ITEMS, DIM, TEXT_DIM = 9, 8, 5
CATALOGUE = 60
LOSSES: dict[str, dict[str, object]] = {
    "sampled_softmax": {},
    "log-Q": {"negatives": 3, "in_batch": 1, "log_q": True},
    "gbce": {"kind": "gbce", "negatives": 4},
    "softmax": {"kind": "softmax"},
}
ALIGNMENTS: dict[str, dict[str, object]] = {
    "unique items": {"alignment": {"samples": "unique", "kernel": "laplace"}},
    "InfoNCE": {"alignment": {"kind": "infonce"}},
    "no anchor": {"anchor": False},
}


def config(disentangle: dict[str, object] | None = None, **sections: object) -> Config:
    """A small config; dropout is off unless a test says otherwise."""
    model = {"dim": DIM, "max_length": 4, "dropout": 0.0}
    mixture = {"gate_init": "ramps", **(disentangle or {})}
    return Config.model_validate({"name": "tiny", "model": model, "disentangle": mixture, **sections})


def rows() -> Rows:
    """Rows of nine items, the first of them padding; those of the tables want a gradient."""
    generator = torch.Generator().manual_seed(3)
    tables = {name: torch.randn(ITEMS, DIM, generator=generator).requires_grad_() for name in ("id", "aligned")}
    text = torch.randn(ITEMS, TEXT_DIM, generator=generator)
    share = torch.tensor([0, 0.1, 0, 0.2, 0.1, 0.1, 0.2, 0.05, 0.25])
    frequency = torch.tensor([0, 40, 0, 9, 9, 3, 15, 1, 2], dtype=torch.int32)
    return {
        **tables,
        "text": text,
        "bin": torch.tensor([0, 1, 10, 3, 3, 7, 2, 9, 5]),
        "share": share,
        "frequency": frequency,
    }


def batch() -> Batch:
    """Three sequences of 2, 3 and 1 positions with four shared negatives; item 30 is in no sample of MK-MMD.

    With LOSSES' `negatives` of 3 the last negative is one in batch.
    """
    return Batch(
        items=torch.tensor([0, 4, 9, 11, 12, 30, 41, 52, 60]),
        lengths=torch.tensor([2, 3, 1]),
        inputs=torch.tensor([1, 2, 3, 4, 6, 2]),
        targets=torch.tensor([2, 7, 4, 6, 1, 8]),
        negatives=torch.tensor([3, 1, 7, 8]),
        occurrences=torch.tensor([4.0, 2, 3, 1, 2, 0, 2, 1, 1]),
        positions=torch.tensor(6),
        shared_negatives=True,
    )


def share(whole: Batch, rank: int) -> Batch:
    """The first two sequences for rank 0, the last for rank 1; the samples of MK-MMD are divided too.

    An item that occurs twice occurs on both.
    """
    sequences, positions = (slice(0, 2), slice(0, 5)) if rank == 0 else (slice(2, 3), slice(5, 6))
    mine = torch.arange(ITEMS) % 2 == rank
    return replace(
        whole,
        lengths=whole.lengths[sequences],
        inputs=whole.inputs[positions],
        targets=whole.targets[positions],
        occurrences=torch.where(whole.occurrences == 2, 1, whole.occurrences.where(mine, 0)),
    )


def objective(stage: str, settings: Config, group: dist.ProcessGroup | None = None) -> StageObjective:
    """The stage's loss over a model with weights that are always the same."""
    torch.manual_seed(0)
    spec = stage_of(settings, stage)
    model = spec.build_model(TEXT_DIM)
    auxiliary = spec.auxiliary_loss(spec.auxiliary, group) if spec.auxiliary_loss else None
    return StageObjective(spec, model, auxiliary, CATALOGUE, group.size() if group else 1).train()


def values() -> dict[tuple[str, str], float]:
    """This rank's value of every stage's loss, {(name of the variant, stage): value}."""
    return {
        (name, stage): objective(stage, settings, dist.group.WORLD)(share(batch(), dist.get_rank()), rows()).item()
        for name, settings in variants().items()
        for stage in STAGES
    }


def variants() -> dict[str, Config]:
    """Each loss and each way to align."""
    losses = {name: config(training={"loss": loss}) for name, loss in LOSSES.items()}
    return losses | {name: config(align=align) for name, align in ALIGNMENTS.items()}
