"""The target rank of every user, kept beside a stage's metrics: what paired tests over users start from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from pad_dist import storage
from pad_dist.errors import UserError
from pad_dist.evaluation.metrics import K

Ints = NDArray[np.int32]
MOST = np.iinfo(np.int32).max
"""Target rank of a target that the user had before, beyond every catalogue."""


@dataclass(frozen=True)
class SplitTargetRanks:
    """Of one split, users who have a target, in the order of the dataset.

    Attributes:
        by_scorer: {scorer: [n] int32} from 1, MOST for a target among the user's earlier items.
        frequency: [n] int32 train frequency of the target.
        bins: [n] int32 frequency bin of the target, 1 to 10.
    """

    by_scorer: dict[str, Ints]
    frequency: Ints
    bins: Ints

    def hits(self, scorer: str) -> NDArray[np.float64]:
        """[n] hr@10 of each user: 0 or 1."""
        return (self.by_scorer[scorer] <= K).astype(np.float64)

    def gains(self, scorer: str) -> NDArray[np.float64]:
        """[n] ndcg@10 of each user: 1 / log2(rank + 1) for a rank of at most 10, else 0."""
        return self.hits(scorer) / np.log2(self.by_scorer[scorer].astype(np.float64) + 1)


class TargetRankRecorder:
    """Collects the target ranks of a split, in room for all users that is made once."""

    def __init__(self, scorers: Sequence[str], users: int) -> None:
        self._columns = {name: np.zeros(users, np.int32) for name in (*scorers, "frequency", "bin")}
        self._scorers, self._done = tuple(scorers), 0

    def add(self, places: Mapping[str, Tensor], frequency: Tensor, bins: Tensor) -> None:
        """The next users: {scorer: [b]} target ranks, [b] train frequency and [b] bin of their targets."""
        part = slice(self._done, self._done + len(frequency))
        for name, values in {**places, "frequency": frequency, "bin": bins}.items():
            self._columns[name][part] = values.clamp(max=MOST).cpu().numpy()
        self._done = part.stop

    def result(self) -> SplitTargetRanks:
        """All that was added."""
        columns = {name: column[: self._done] for name, column in self._columns.items()}
        return SplitTargetRanks({name: columns[name] for name in self._scorers}, columns["frequency"], columns["bin"])


@dataclass(frozen=True)
class TargetRankFile:
    """`target_ranks.safetensors`: target ranks by split, the cache key of their evaluation, the hash of its dataset."""

    splits: dict[str, SplitTargetRanks]
    cache_key: str
    dataset: str

    def write(self, url: str) -> None:
        """Publish the file atomically."""
        arrays = {
            f"{split}/{name}": column
            for split, columns in self.splits.items()
            for name, column in {
                "frequency": columns.frequency,
                "bin": columns.bins,
                **{f"target_rank/{scorer}": values for scorer, values in columns.by_scorer.items()},
            }.items()
        }
        storage.write_bytes(url, save(arrays, {"cache_key": self.cache_key, "dataset": self.dataset}))

    @classmethod
    def read(cls, url: str) -> Self:
        """Read a whole file.

        Raises:
            UserError: it is missing, or none that `write` has left.
        """
        content = storage.read_bytes(url)
        try:
            arrays = load(content)
            about = _metadata(content)
            names = {name.partition("/")[0] for name in arrays}
            splits = {split: _split(arrays, split) for split in sorted(names)}
            return cls(splits, about["cache_key"], about["dataset"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{url} is no file of target ranks: {error}; evaluate the run again") from None


def _split(arrays: Mapping[str, Any], split: str) -> SplitTargetRanks:
    prefix = f"{split}/target_rank/"
    target_ranks = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return SplitTargetRanks(target_ranks, arrays[f"{split}/frequency"], arrays[f"{split}/bin"])


def _metadata(content: bytes) -> dict[str, str]:
    """The header's free part: 8 bytes of its length, then JSON."""
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + size])["__metadata__"])
