"""Samples in the form of the public files, read through the configs as they are."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from pad_dist.config import DataConfig
from pad_dist.config.load import load_config
from pad_dist.dataset.lineage import input_files
from spark_jobs.inputs import read_catalogue, read_events

SAMPLES = Path(__file__).parent / "samples"
CONFIGS = Path(__file__).parents[2] / "configs"

Rows = list[tuple[Any, ...]]


def config_of(name: str, tmp_path: Path, events: str, items: str) -> DataConfig:
    """The config of that name on its sample; files are packed where the public ones are."""
    for file in (events, items):
        content = (SAMPLES / name / file.removesuffix(".gz")).read_bytes()
        (tmp_path / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    given = [f"data.interactions={tmp_path / events}", f"data.items={tmp_path / items}"]
    return load_config(str(CONFIGS / f"{name}.yaml"), given).data


def events_of(spark: SparkSession, data: DataConfig) -> tuple[Rows, list[str]]:
    return split(read_events(spark, data, list(input_files(data.interactions))), ["user_key", "item_key", "time"])


def items_of(spark: SparkSession, data: DataConfig) -> tuple[Rows, list[str]]:
    return split(read_catalogue(spark, data, list(input_files(data.items))), ["item_key", "text"])


def split(frame: DataFrame, names: list[str]) -> tuple[Rows, list[str]]:
    """Usable rows and reasons, both sorted."""
    rows = frame.collect()
    good = [tuple(row[name] for name in names) for row in rows if row.rejected is None]
    return sorted(good), sorted(row.rejected for row in rows if row.rejected is not None)


def test_amazon_2014(spark: SparkSession, tmp_path: Path) -> None:
    data = config_of("amazon2014", tmp_path, "reviews_Beauty.json.gz", "meta_Beauty.json.gz")
    assert events_of(spark, data) == (
        [
            ("A1YJEY40YUW4SE", "7806397051", 1391040000.0),
            ("A1YJEY40YUW4SE", "9759091062", 1391040000.0),
            *[("A60XNB876KYML", "7806397051", 1397779200.0)] * 2,
        ],
        ["line is corrupt", "reviewerID is blank"],
    )
    title = "WAWO 15 Color Professional Makeup Eyeshadow Camouflage Facial Concealer"
    burt = "Burt's \"Bees\" Créme & Co by Burt's Bees Beauty, Skin Care, Health & Personal Care"
    assert items_of(spark, data) == (
        [
            ("7806397051", f"{title} Beauty, Makeup, Face, Concealers &amp; Neutralizers"),
            *[("9759091062", burt)] * 2,
            ("9788072216", None),
            ("9790790961", "by Versace"),
        ],
        ["line is corrupt"],
    )


def test_amazon_2018(spark: SparkSession, tmp_path: Path) -> None:
    data = config_of("amazon2018", tmp_path, "All_Beauty.json.gz", "meta_All_Beauty.json.gz")
    assert events_of(spark, data) == (
        [
            ("A1V6B6TNIC10QE", "0143026860", 1424304000.0),
            *[("A2F5GHSXFQ0W6J", "B00006L9LC", 1418860800.0)] * 2,
        ],
        ["unixReviewTime is blank"],
    )
    assert items_of(spark, data) == (
        [
            ("0143026860", "Loud 'N Clear&trade; Personal Sound Amplifier by idea village"),
            ("B0000530HU", None),
            *[("B00006L9LC", "Shampoo &amp; Conditioner Beauty & Personal Care, Hair Care")] * 2,
        ],
        ["asin is blank"],
    )


def test_amazon_2023(spark: SparkSession, tmp_path: Path) -> None:
    data = config_of("amazon2023", tmp_path, "All_Beauty.jsonl.gz", "meta_All_Beauty.jsonl.gz")
    assert events_of(spark, data) == (
        [
            *[("AE74DYR3QUGVPZJ3P7RFWBGIX7XQ", "B097R46CSY", 1589665266.052)] * 2,
            ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00YQ6X8EO", 1588687728.923),
        ],
        ["timestamp looks like seconds: set data.time_unit=s"],
    )
    assert items_of(spark, data) == (
        [
            ("B00YQ6X8EO", "Howard LC0008 Leather Conditioner &amp; Cleaner by Howard Products"),
            ("B07NTK7T5P", None),
            ("B097R46CSY", "[Set of 2] Brush Beauty, Tools & Accessories"),
        ],
        [],
    )


def test_movielens_1m(spark: SparkSession, tmp_path: Path) -> None:
    data = config_of("movielens_1m", tmp_path, "ratings.dat", "movies.dat")
    assert events_of(spark, data) == (
        [("1", "1193", 978300760.0), ("1", "661", 978302109.0), *[("2", "1193", 978298413.0)] * 2],
        ["line is corrupt", "user is blank"],
    )
    assert items_of(spark, data) == (
        [
            ("1193", '"Misérables", Les: One; Two (1995) Drama'),
            ("3000", None),
            ("661", "James and the Giant Peach (1996) Animation|Children's|Musical"),
        ],
        [],
    )


def test_movielens_20m(spark: SparkSession, tmp_path: Path) -> None:
    data = config_of("movielens_20m", tmp_path, "ratings.csv", "movies.csv")
    assert events_of(spark, data) == (
        [
            ("1", "2", 1112486027.0),
            ("1", "29", 1112484676.0),
            *[("2", "29", 1112484676.0)] * 2,
        ],
        ["timestamp is blank"],
    )
    assert items_of(spark, data) == (
        [
            ("2", "Jumanji (1995) Adventure|Children|Fantasy"),
            ("29", "City of Lost Children, The (Cité des enfants perdus, La) (1995) (no genres listed)"),
            ("31", '"Great" &amp; Small'),
        ],
        [],
    )


def test_mind(spark: SparkSession, tmp_path: Path) -> None:
    data = config_of("mind", tmp_path, "behaviors.tsv", "news.tsv")
    morning, evening = 1573463158.0, 1573582290.0  # 2019-11-11 9:05:58 and 2019-11-12 18:11:30, UTC
    assert events_of(spark, data) == (
        [("U13740", "N55689", morning), ("U91836", "N39317", evening), ("U91836", "N58114", evening)],
        ["impressions is blank", "line is corrupt", "time is not of the form M/d/yyyy h:mm:ss a"],
    )
    assert items_of(spark, data) == (
        [
            ("N35729", "Porsche launches into second story in news"),
            ("N39317", '"unclosed quote &amp; more in lifestyle'),
            ("N55689", 'Charles Rogers, former "Lions" star, dies in sports'),
            ("N58114", "in news"),
        ],
        [],
    )


@pytest.mark.parametrize("name", sorted(folder.name for folder in SAMPLES.iterdir()))
def test_a_public_set_is_read_as_the_literature_does(name: str) -> None:
    data = load_config(str(CONFIGS / f"{name}.yaml")).data
    assert (data.min_interactions, data.min_item_interactions) == ((3, 0) if name == "mind" else (5, 5))
    assert data.split.kind == "leave_one_out"
