"""The file of every user's rank: what goes in comes out, and gives the metrics of the report."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pad_dist.errors import UserError
from pad_dist.evaluation.metrics import rank_counts, summarize
from pad_dist.evaluation.rank_file import MOST, RankFile, RankRecorder
from pad_dist.evaluation.ranking import MISSED


def recorded(users: int = 50, seed: int = 0) -> tuple[RankRecorder, dict[str, torch.Tensor]]:
    """Ranks of two scorers in two uneven parts, and the same as a whole."""
    draw = torch.Generator().manual_seed(seed)
    whole = {name: torch.randint(1, 30, (users,), generator=draw) for name in ("id", "popularity")}
    whole["id"][3] = MISSED
    whole |= {"frequency": torch.randint(0, 12, (users,), generator=draw)}
    whole |= {"bin": torch.randint(1, 11, (users,), generator=draw)}
    recorder = RankRecorder(["id", "popularity"], users + 5)  # some have no target
    for part in (slice(0, 17), slice(17, users)):
        recorder.add({n: whole[n][part] for n in ("id", "popularity")}, whole["frequency"][part], whole["bin"][part])
    return recorder, whole


def test_a_file_gives_what_was_recorded_and_its_metrics(tmp_path: Path) -> None:
    recorder, whole = recorded()
    url = f"{tmp_path}/ranks.safetensors"
    RankFile({"valid": recorder.result(), "test": recorder.result()}, "mark", "hash").write(url)
    read = RankFile.read(url)
    assert (read.mark, read.dataset, set(read.splits)) == ("mark", "hash", {"valid", "test"})
    found = read.splits["test"]
    for name in ("id", "popularity"):
        assert found.ranks[name].dtype == np.int32
        assert found.ranks[name].tolist() == whole[name].clamp(max=MOST).tolist()
        metrics = summarize(rank_counts(whole[name], whole["frequency"], whole["bin"], 5))
        assert found.hits(name).mean() == metrics["hr@10"]
        assert found.gains(name).mean() == pytest.approx(metrics["ndcg@10"], rel=1e-12)
    assert found.frequency.tolist() == whole["frequency"].tolist() and found.bins.tolist() == whole["bin"].tolist()


@pytest.mark.parametrize("content", [b"", b"\x05\x00\x00\x00\x00\x00\x00\x00hello", b"cut"])
def test_what_is_no_file_of_ranks_is_one_line(tmp_path: Path, content: bytes) -> None:
    url = tmp_path / "ranks.safetensors"
    url.write_bytes(content)
    with pytest.raises(UserError, match="is no file of ranks") as error:
        RankFile.read(str(url))
    assert "\n" not in str(error.value)


def test_a_rank_that_keeps_nothing_needs_no_room() -> None:
    assert RankRecorder(["id"], 0).result().ranks["id"].size == 0
