"""The file of every user's target rank: what goes in comes out, and gives the metrics of the report."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pad_dist.errors import UserError
from pad_dist.evaluation.metrics import rank_counts, summarize
from pad_dist.evaluation.ranking import MISSED
from pad_dist.evaluation.target_ranks import MOST, TargetRankFile, TargetRankRecorder


def recorded(users: int = 50, seed: int = 0) -> tuple[TargetRankRecorder, dict[str, torch.Tensor]]:
    """Target ranks of two scorers in two uneven parts, and the same as a whole."""
    draw = torch.Generator().manual_seed(seed)
    whole = {name: torch.randint(1, 30, (users,), generator=draw) for name in ("id", "popularity")}
    whole["id"][3] = MISSED
    whole |= {"frequency": torch.randint(0, 12, (users,), generator=draw)}
    whole |= {"bin": torch.randint(1, 11, (users,), generator=draw)}
    recorder = TargetRankRecorder(["id", "popularity"], users + 5)  # some have no target
    for part in (slice(0, 17), slice(17, users)):
        recorder.add({n: whole[n][part] for n in ("id", "popularity")}, whole["frequency"][part], whole["bin"][part])
    return recorder, whole


def test_a_file_gives_what_was_recorded_and_its_metrics(tmp_path: Path) -> None:
    recorder, whole = recorded()
    url = f"{tmp_path}/target_ranks.safetensors"
    TargetRankFile({"valid": recorder.result(), "test": recorder.result()}, "key", "hash").write(url)
    read = TargetRankFile.read(url)
    assert (read.cache_key, read.dataset, set(read.splits)) == ("key", "hash", {"valid", "test"})
    columns = read.splits["test"]
    for name in ("id", "popularity"):
        assert columns.by_scorer[name].dtype == np.int32
        assert columns.by_scorer[name].tolist() == whole[name].clamp(max=MOST).tolist()
        metrics = summarize(rank_counts(whole[name], whole["frequency"], whole["bin"], 5))
        assert columns.hits(name).mean() == metrics["hr@10"]
        assert columns.gains(name).mean() == pytest.approx(metrics["ndcg@10"], rel=1e-12)
    assert columns.frequency.tolist() == whole["frequency"].tolist() and columns.bins.tolist() == whole["bin"].tolist()


@pytest.mark.parametrize("content", [b"", b"\x05\x00\x00\x00\x00\x00\x00\x00hello", b"cut"])
def test_what_is_no_file_of_target_ranks_is_one_line(tmp_path: Path, content: bytes) -> None:
    url = tmp_path / "target_ranks.safetensors"
    url.write_bytes(content)
    with pytest.raises(UserError, match="is no file of target ranks") as error:
        TargetRankFile.read(str(url))
    assert "\n" not in str(error.value)


def test_a_rank_that_keeps_nothing_needs_no_room() -> None:
    assert TargetRankRecorder(["id"], 0).result().by_scorer["id"].size == 0
