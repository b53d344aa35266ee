"""`pad-dist compare` as a user runs it: methods that share stages, one that fails, and the documents of the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pad_dist.compare.config import load_comparison
from pad_dist.compare.document import write_documents
from pad_dist.compare.jobs import data_jobs, run_jobs
from pad_dist.compare.records import collect, is_recorded
from pad_dist.compare.results import read_run
from pad_dist.evaluation.target_ranks import TargetRankFile
from tests.support.tiny_run import ROOT, RUN

# The first test waits for all runs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

METHODS: dict[str, Any] = {
    "whole": {"role": "ours"},
    "no_gate": {"overrides": ["disentangle.gate=none"]},
    # What no config shows: this optimizer has no kernel here.
    "broken": {"role": "ablation", "overrides": ["sparse.optimizer=adam"]},
}
COMPARISON = {
    "out": "out",
    "results": "results",
    "report": "RESULTS.md",
    "findings": "findings.md",
    "datasets": {"tiny": {"config": "tiny.yaml", "overrides": ["evaluation.batch_size=64"]}},
    "methods": METHODS,
    "seeds": [7],
    "processes": 2,
}
OTHER = {"tiny": {"config": "tiny.yaml", "overrides": ["pretrain.lr=0.5"]}}


def compare(folder: Path, *options: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pad_dist.cli.main import main; main()", "compare", "--config", "all.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def write_configs(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RUN))
    (folder / "all.yaml").write_text(yaml.safe_dump(COMPARISON, sort_keys=False))
    (folder / "findings.md").write_text("Findings: *as they are*.\n")
    (folder / "latin.md").write_bytes("caf\xe9\n".encode("latin-1"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_configs(folder)
    return folder


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess[str]:
    return compare(folder)


def place(folder: Path, method: str) -> Path:
    return folder / "out" / "tiny" / method / "seed-7"


def test_a_failed_run_is_named_at_the_end_and_the_others_go_on(
    first: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert first.returncode == 1, first.stdout + first.stderr
    log = "out/tiny/broken/seed-7/run.log"
    assert first.stderr.splitlines() == [f"pad-dist: error: tiny/broken/seed-7 failed, see {log}"]
    assert "has no CPU kernel" in (folder / log).read_text()
    for name in ("tiny/data", "tiny/whole/seed-7", "tiny/no_gate/seed-7"):
        assert f"{name}: start" in first.stdout and f"{name}: done in" in first.stdout


def test_a_stage_that_methods_share_is_trained_once(first: subprocess.CompletedProcess[str], folder: Path) -> None:
    log = (place(folder, "no_gate") / "run.log").read_text()
    for stage in ("pretrain", "align"):
        assert f"{stage}: trained already in out/tiny/whole/seed-7, copied" in log
        assert f"[{stage}] epoch" not in log
        results = [json.loads((place(folder, m) / stage / "result.json").read_text()) for m in ("whole", "no_gate")]
        assert results[1].pop("taken_from") == "out/tiny/whole/seed-7" and results[0] == results[1]
    assert "[disentangle] epoch" in log


def test_the_target_ranks_of_every_user_give_the_metrics(first: subprocess.CompletedProcess[str], folder: Path) -> None:
    for stage in ("pretrain", "align", "disentangle"):
        run = place(folder, "whole") / stage
        evaluation = json.loads((run / "evaluation.json").read_text())
        target_ranks = TargetRankFile.read(f"{run}/target_ranks.safetensors")
        assert target_ranks.cache_key == evaluation["cache_key"]
        for scorer, splits in evaluation["scores"].items():
            for split, metrics in splits.items():
                users = target_ranks.splits[split]
                assert users.hits(scorer).mean() == metrics["hr@10"]
                assert users.gains(scorer).mean() == pytest.approx(metrics["ndcg@10"], rel=1e-12)
                cold = users.frequency <= 5
                assert users.hits(scorer)[cold].mean() == pytest.approx(metrics["cold"]["hr@10"], rel=1e-12)
                assert np.bincount(users.bins, minlength=11)[1:].tolist() == [e["users"] for e in metrics["by_bin"]]


def written(folder: Path) -> dict[str, str]:
    """The documents of a comparison by their path."""
    pages = [folder / "RESULTS.md", *folder.glob("results/*.md")]
    return {str(page.relative_to(folder)): page.read_text() for page in pages}


def test_the_documents_hold_what_the_runs_found(first: subprocess.CompletedProcess[str], folder: Path) -> None:
    pages = written(folder)
    assert set(pages) == {"RESULTS.md", "results/methods.md", "results/tiny.md"}
    assert all("pad-dist compare --config all.yaml" in page for page in pages.values())
    assert pages["RESULTS.md"].endswith("Findings: *as they are*.\n")
    assert "| no_gate | baseline | `disentangle.gate=none` |" in pages["results/methods.md"]
    text = pages["results/tiny.md"]
    report = json.loads((place(folder, "whole") / "report.json").read_text())
    mixture = report["stages"]["disentangle"]
    row = next(line for line in text.splitlines() if line.startswith("| whole | ours | 1 of 1 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")][3:]
    expected = [mixture["valid"]["hr@10"], mixture["test"]["hr@10"], mixture["test"]["ndcg@10"]]
    expected += [mixture["test"]["cold"]["hr@10"], mixture["test"]["cold"]["ndcg@10"]]
    assert cells[:5] == [f"{value:.4f}" for value in expected]
    assert "\nMissing: broken.\n" in text
    assert "The best baseline by validation hr@10 is no_gate" in text
    summary = next(line for line in pages["RESULTS.md"].splitlines() if line.startswith("| whole |"))
    metrics = mixture["test"]
    shown = f"{metrics['hr@10']:.4f} / {metrics['ndcg@10']:.4f}, {metrics['cold']['ndcg@10']:.4f} (1)"
    assert summary == f"| whole | {shown} |"
    assert report["environment"]["commit"] is None or report["environment"]["commit"] in text


def test_what_alignment_forgets_is_measured(first: subprocess.CompletedProcess[str], folder: Path) -> None:
    run = place(folder, "whole")
    forgetting = json.loads((run / "align" / "forgetting.json").read_text())
    pretrain = json.loads((run / "pretrain" / "evaluation.json").read_text())["scores"]["id"]
    for split in ("valid", "test"):
        assert forgetting[split]["before"] == forgetting[split]["frozen_original"] == pretrain[split]
        assert forgetting[split]["aligned_table"]["users"] == pretrain[split]["users"]
    assert forgetting["test"]["aligned_table"] != pretrain["test"]
    assert 0.1 < forgetting["kendall_tau"]["mean"] < 1
    assert "## Forgetting" in written(folder)["results/tiny.md"]


def test_what_an_earlier_align_stage_forgot_is_not_taken_for_this_ones(
    first: subprocess.CompletedProcess[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    shutil.copytree(place(folder, "whole"), tmp_path / "run")
    comparison = load_comparison("all.yaml")
    whole = run_jobs(comparison, data_jobs(comparison))[0]
    copied = replace(whole, config=whole.config.model_copy(update={"out": str(tmp_path / "run")}))
    forgetting = read_run(copied).forgetting
    assert forgetting is not None
    (tmp_path / "run/align/forgetting.json").write_text(json.dumps({**forgetting, "cache_key": "of another training"}))
    assert read_run(copied).forgetting is None


def test_a_second_call_runs_only_what_failed_and_writes_the_same(
    first: subprocess.CompletedProcess[str], folder: Path
) -> None:
    pages = written(folder)
    again = compare(folder, "--report-only")
    assert again.returncode == 0, again.stderr
    assert written(folder) == pages
    third = compare(folder)
    assert third.returncode == 1
    started = [line for line in third.stdout.splitlines() if line.endswith(": start")]
    assert started == ["tiny/broken/seed-7: start"]
    assert written(folder) == pages


def test_the_records_alone_give_the_documents_and_are_of_these_settings(
    first: subprocess.CompletedProcess[str], folder: Path, tmp_path: Path
) -> None:
    write_configs(tmp_path)
    shutil.copytree(folder / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.md"))
    one, two = "| whole | ours | 1 of 1 |", "| whole | ours | 1 of 2 |"
    for change, expected in (({}, one), ({"seeds": [7, 8]}, two), ({"datasets": OTHER}, "No run is finished.")):
        (tmp_path / "all.yaml").write_text(yaml.safe_dump({**COMPARISON, **change}, sort_keys=False))
        done = compare(tmp_path, "--report-only")
        assert done.returncode == 0, done.stderr
        pages = written(tmp_path)
        assert expected in pages["results/tiny.md"]
        assert bool(change) or pages == written(folder)


def test_commands_are_printed_in_order_and_nothing_is_run(tmp_path: Path) -> None:
    write_configs(tmp_path)
    done = compare(tmp_path, "--print-jobs")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and not (tmp_path / "out").exists()
    assert lines[0].startswith("pad-dist run --config tiny.yaml --out out/tiny/data --until data evaluation.batch_size")
    assert [line.split()[5] for line in lines[1:]] == [f"out/tiny/{method}/seed-7" for method in METHODS]
    assert all("--reuse out/tiny " in line and "seed=7" in line for line in lines[1:])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("compare*.yaml")), ids=lambda path: path.stem)
def test_the_comparisons_of_the_repository_make_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    comparison = load_comparison(str(path))
    data = data_jobs(comparison)
    jobs = run_jobs(comparison, data)
    assert len({job.config.out for job in jobs}) == len(jobs)
    assert len(jobs) == len(comparison.datasets) * len(comparison.methods) * len(comparison.seeds)


def test_the_documents_of_the_repository_are_what_its_records_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = "configs/compare.yaml"
    comparison = load_comparison(path)
    jobs = run_jobs(comparison, data_jobs(comparison))
    # A file of it that belongs to no run here, or to one of other settings, would be shown nowhere.
    records = {str(file) for file in Path(comparison.results).glob("*/*/*.json")}
    assert records == {f"{comparison.results}/{job.name}.json" for job in jobs if is_recorded(comparison, job)}
    pages = write_documents(comparison, path, collect(comparison, jobs))
    assert {page: Path(page).read_text() for page in pages} == pages
    assert {str(page) for page in Path(comparison.results).glob("*.md")} == {*pages} - {comparison.report}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"methods": {"a": {}}}, "0 methods have role=ours"),
        ({"methods": {"a": {"role": "ours"}, "data": {}}}, "no method can be named data"),
        ({"methods": {"a/b": {"role": "ours"}}}, "a/b"),
        ({"methods": {"a": {"role": "ours", "overide": []}}}, "unknown key methods.a.overide"),
        ({"methods": {"a": {"role": "ours", "overrides": ["model.dmi=4"]}}}, "did you mean model.dim?"),
        ({"methods": {"a": {"role": "ours", "overrides": ["data.min_interactions=9"]}}}, "method a changes data.*"),
        ({"sedes": [1]}, "unknown key sedes; did you mean seeds?"),
        ({"seeds": [1, 1]}, "names one twice"),
        ({"findings": "nowhere.md"}, "findings=nowhere.md does not exist"),
        ({"findings": "latin.md"}, "findings=latin.md is no text in UTF-8"),
        (
            {"methods": {**METHODS, "a": {"overrides": ["evaluation.cold_max_frequency=3"]}}},
            "method a changes evaluation.cold_max_frequency",
        ),
    ],
)
def test_a_mistake_in_the_comparison_is_one_line_before_any_work(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    write_configs(tmp_path)
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({**COMPARISON, **change}))
    done = compare(tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert told in line and line.startswith("pad-dist: error: ")
    assert not (tmp_path / "out").exists() and not (tmp_path / "RESULTS.md").exists()
