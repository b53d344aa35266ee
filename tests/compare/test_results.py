"""Means, spreads, gains and what is missing, from runs whose target ranks are known; files at odds are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from pad_dist.compare.config import Comparison
from pad_dist.compare.document import write_documents
from pad_dist.compare.jobs import Job
from pad_dist.compare.results import DatasetResult, MethodResult, RunResult, read_run
from pad_dist.compare.tables import (
    forgetting_table,
    frequency_table,
    gains_table,
    methods_table,
    seconds_table,
    spread,
    summary_table,
)
from pad_dist.config import Config
from pad_dist.errors import UserError
from pad_dist.evaluation.metrics import rank_counts, summarize
from pad_dist.evaluation.target_ranks import SplitTargetRanks, TargetRankFile

USERS = 400
FREQUENCY = np.arange(USERS, dtype=np.int32) % 10
BINS = (1 + np.arange(USERS, dtype=np.int32) % 5).astype(np.int32)  # bins 6 to 10 have no user


def target_ranks(share: float, seed: int) -> SplitTargetRanks:
    """About `share` of the users have target rank 1, the others 100."""
    hit = np.random.default_rng(seed).random(USERS) < share
    return SplitTargetRanks({"mixture": np.where(hit, 1, 100).astype(np.int32)}, FREQUENCY, BINS)


def run(seed: int, valid: float, test: float) -> RunResult:
    splits = {"valid": target_ranks(valid, seed), "test": target_ranks(test, seed + 100)}
    environment = {"stages": {"pretrain": {"commit": f"c{seed}", "packages": {"torch": "2"}}}}
    dataset = {"users": USERS, "items": 50, "interactions": 4000, "hash": "0123456789abcdef"}
    report = {"dataset": dataset, "environment": environment}
    timings = {"pretrain": 10.0 * seed, "evaluate": 1.0}
    return RunResult(
        seed, TargetRankFile(splits, "m", "d"), "mixture", report, timings, {"pretrain": {"starts from": []}}, None
    )


def method(name: str, role: str, valid: float, test: float, seeds: int = 3) -> MethodResult:
    return MethodResult(name, role, tuple(run(seed, valid, test) for seed in range(1, seeds + 1)), 3)


COMPARISON = Comparison.model_validate(
    {"out": "o", "datasets": {"shop": {"config": "c"}}, "methods": {"mine": {"role": "ours"}}, "seeds": [1, 2, 3]}
)


def details(result: DatasetResult) -> str:
    """The page of a data set."""
    return write_documents(COMPARISON, "x.yaml", [result])["docs/results/shop.md"]


@pytest.fixture(scope="module")
def result() -> DatasetResult:
    methods = (
        method("mine", "ours", 0.5, 0.5),
        method("steady", "baseline", 0.4, 0.3),
        method("lucky", "baseline", 0.2, 0.45, seeds=2),
        method("part", "ablation", 0.9, 0.9),
        method("none", "baseline", 0.0, 0.0, seeds=0),
    )
    return DatasetResult("shop", methods, "mine", 5, {"build_sequences": 12.0})


def cells(lines: list[str], name: str) -> list[str]:
    row = next(line for line in lines if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in row.strip("| ").split("|")]


def test_means_and_spreads_are_those_of_the_seeds(result: DatasetResult) -> None:
    lines = methods_table(result)
    mine = result.our_method
    hits = [run.target_ranks.splits["test"].by_scorer["mixture"] == 1 for run in mine.runs]
    row = cells(lines, "mine")
    assert row[1:3] == ["ours", "3 of 3"]
    means = [float(hit.mean()) for hit in hits]
    assert row[4] == f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}"
    assert row[6] == spread([float(hit[FREQUENCY <= 5].mean()) for hit in hits])
    assert row[8] == spread([float(hit[FREQUENCY > 5].mean()) for hit in hits])
    assert cells(lines, "lucky")[2] == "2 of 3" and not any("none" in line for line in lines)


def test_the_best_baseline_is_chosen_on_validation_and_the_best_on_test_is_another(result: DatasetResult) -> None:
    valid, test = result.best_baseline("valid"), result.best_baseline("test")
    assert valid is not None and test is not None and (valid.name, test.name) == ("steady", "lucky")
    empty = DatasetResult("shop", (method("mine", "ours", 0.5, 0.5),), "mine", 5, {})
    assert empty.best_baseline("valid") is None


def test_gains_are_paired_over_users(result: DatasetResult) -> None:
    rows = gains_table(result, [result.methods[1], result.methods[4]])
    seeds, _, _, difference, relative, interval, p, over_seeds = cells(rows, "steady")[1:]
    ours, other = (np.mean(m.means("test", "hr@10", lambda s: np.ones(USERS, bool))) for m in result.methods[:2])
    assert difference == f"{ours - other:+.4f}" and relative == f"{ours / other - 1:+.2%}"
    low, high = (float(value) for value in interval.split(" to "))
    assert low < ours - other < high and low > 0 and p == "0.0001" and seeds == "3"
    assert {line.split()[1] for line in rows[2:-1]} == {"steady"}
    hits = [[float(r.per_user("test", "hr@10").mean()) for r in method.runs] for method in result.methods[:2]]
    expected = ttest_rel(*hits).confidence_interval(0.95)
    assert over_seeds == f"{expected.low:+.4f} to {expected.high:+.4f}"


def test_a_method_with_fewer_runs_is_compared_on_its_own_seeds(result: DatasetResult) -> None:
    ours, lucky = result.our_method, result.methods[2]
    first_two = np.mean([ours.runs[seed].per_user("test", "hr@10") for seed in (0, 1)])
    other = np.mean([run.per_user("test", "hr@10") for run in lucky.runs])
    assert cells(gains_table(result, [lucky]), "lucky")[1:5] == ["2", "all", "hr@10", f"{first_two - other:+.4f}"]

    apart = replace(lucky, runs=(run(9, 0.2, 0.45),))
    assert cells(gains_table(result, [apart]), "lucky")[1:] == ["0", "all", "hr@10", *["-"] * 5]
    single = replace(lucky, runs=lucky.runs[:1])
    assert cells(gains_table(result, [single]), "lucky")[-1] == "-"


def test_stages_that_were_trained_anew_elsewhere_are_named(result: DatasetResult) -> None:
    sources = {"pretrain": [], "align": ["pretrain"], "pretrain_text": [], "disentangle": ["align", "pretrain_text"]}

    def made(name: str, role: str, seed: int = 1, machine: str = "here", **changed: str | None) -> MethodResult:
        one = run(seed, 0.5, 0.5)
        kept = [stage for stage in sources if changed.get(stage, "") is not None]
        one.report["environment"]["stages"] = {stage: {"commit": "c", "machine": machine} for stage in kept}
        stages = {stage: {"lr": changed.get(stage, "same"), "starts from": sources[stage]} for stage in kept}
        return MethodResult(name, role, (replace(one, stages=stages),), 3)

    ours, same = made("mine", "ours"), made("same", "baseline", disentangle="other")
    whole = replace(result, methods=(ours, same))
    assert whole.trained_anew(same) == [] == whole.trained_anew(made("later", "baseline", 2, "there"))
    for changed, stages in (
        ([], ["pretrain", "align", "pretrain_text", "disentangle"]),
        (["align"], ["pretrain", "pretrain_text"]),
        (["pretrain"], ["pretrain_text"]),
    ):
        assert whole.trained_anew(made("a", "ablation", 1, "there", **dict.fromkeys(changed, "other"))) == stages
    two = made("two", "baseline", 1, "there", align=None, disentangle="other")
    assert whole.trained_anew(two) == ["pretrain", "pretrain_text"]
    text = details(replace(result, methods=(ours, same, two)))
    assert "include the spread of training: two (pretrain, pretrain_text)." in text
    assert "did not reuse" in text and "did not reuse" not in details(whole)


def test_frequencies_split_the_users_and_an_empty_bin_is_no_missing_run(result: DatasetResult) -> None:
    lines = frequency_table(result, "hr@10")
    assert cells(lines, "users")[1:] == ["80"] * 5 + ["0"] * 5 + ["40", "200"]
    assert cells(lines, "mine")[6:11] == ["-"] * 5 and not any("none" in line for line in lines)


def test_only_stages_of_the_method_have_a_time(result: DatasetResult) -> None:
    lines = seconds_table(result)
    assert lines[0] == "| method | pretrain | evaluate |"
    assert cells(lines, "mine") == ["mine", "20", "1"] and len(lines) == 7


def test_forgetting_is_told_of_methods_that_align(result: DatasetResult) -> None:
    assert forgetting_table(result) == []
    by_bin = [{"bin": number, "tau": 0.5 if number < 10 else None, "items": 3} for number in range(1, 11)]
    scores = {"before": {"hr@10": 0.4}, "frozen_original": {"hr@10": 0.4}, "aligned_table": {"hr@10": 0.3}}
    forgetting = {"test": scores, "kendall_tau": {"mean": 0.6, "by_bin": by_bin}}
    one = replace(run(1, 0.5, 0.5), forgetting=forgetting)
    lines = forgetting_table(DatasetResult("shop", (MethodResult("clip", "ours", (one,), 1),), "clip", 5, {}))
    expected = ["clip", "0.4000", "0.4000", "0.3000", "-25.0%", "0.600", *["0.500"] * 9, "-"]
    assert cells(lines, "clip") == expected


def test_the_summary_has_the_means_of_ours_and_the_baselines_on_every_data_set(result: DatasetResult) -> None:
    other = DatasetResult("market", (method("mine", "ours", 0.5, 0.5), *result.methods[1:3]), "mine", 0, {})
    lines = summary_table([result, replace(other, methods=(*other.methods[:2], replace(other.methods[2], runs=())))])
    assert lines[0] == "| method | shop | market |"
    assert [line.split()[1] for line in lines[2:-1]] == ["mine", "steady", "lucky"]
    steady = result.methods[1].runs
    hits = [run.target_ranks.splits["test"].by_scorer["mixture"] == 1 for run in steady]
    mean, cold = np.mean(hits), np.mean([hit[FREQUENCY <= 5].mean() for hit in hits])
    assert cells(lines, "steady")[1] == f"{mean:.4f} / {mean:.4f}, {cold:.4f} (3)"
    cold = np.mean([hit[FREQUENCY == 0].mean() for hit in hits])
    assert cells(lines, "steady")[2] == f"{mean:.4f} / {mean:.4f}, {cold:.4f} (3)"
    assert cells(lines, "lucky")[1].endswith(" (2)") and cells(lines, "lucky")[2] == "-"


def test_pages_link_one_another_wherever_they_are(result: DatasetResult) -> None:
    for report, results, to_page, to_summary in (
        ("docs/RESULTS.md", "docs/results", "results/shop.md", "../RESULTS.md"),
        ("RESULTS.md", "a/b", "a/b/shop.md", "../../RESULTS.md"),
    ):
        comparison = COMPARISON.model_copy(update={"report": report, "results": results})
        pages = write_documents(comparison, "x.yaml", [result])
        assert list(pages) == [report, f"{results}/methods.md", f"{results}/shop.md"]
        assert f"[shop]({to_page})" in pages[report]
        assert f"[The summary]({to_summary})" in pages[f"{results}/shop.md"]


def test_the_page_of_no_run_says_so(result: DatasetResult) -> None:
    text = details(result)
    assert "The best baseline by validation hr@10 is steady, by test hr@10 lucky." in text
    assert "| commit | c1; c2; c3 |" in text and "| packages.torch | 2 |" in text and "240 of them with a cold" in text
    assert "\nMissing: none.\n" in text
    alone = DatasetResult("shop", (result.our_method,), "mine", 5, {})
    assert "Missing: no finished runs to compare." in details(alone)
    none = DatasetResult("shop", (method("mine", "ours", 0, 0, seeds=0),), "mine", 5, {})
    text = details(none)
    assert "No run is finished." in text and "0.0" not in text


def test_target_ranks_that_are_not_those_of_the_metrics_are_refused(tmp_path: Path) -> None:
    config = Config.model_validate({"name": "tiny", "out": str(tmp_path), "method": "id"})
    job = Job("shop", "mine", 1, "c.yaml", (), (), config)
    splits = {split: target_ranks(0.3, seed) for seed, split in enumerate(("valid", "test"))}
    scores = {
        split: summarize(
            rank_counts(torch.from_numpy(s.by_scorer["mixture"]).long(), *map(torch.from_numpy, (FREQUENCY, BINS)), 5)
        )
        for split, s in splits.items()
    }
    (tmp_path / "pretrain").mkdir()
    evaluation = tmp_path / "pretrain" / "evaluation.json"
    evaluation.write_text(json.dumps({"cache_key": "m", "scores": {"id": {}, "mixture": scores, "popularity": {}}}))
    (tmp_path / "report.json").write_text('{"timings_s": {}}')
    file = f"{tmp_path}/pretrain/target_ranks.safetensors"
    TargetRankFile(splits, "m", "d").write(file)
    assert read_run(job).scorer == "mixture"
    for wrong in (
        TargetRankFile(splits, "other", "d"),
        TargetRankFile({**splits, "test": target_ranks(0.3, 9)}, "m", "d"),
    ):
        wrong.write(file)
        with pytest.raises(UserError, match="is not of the evaluation"):
            read_run(job)
