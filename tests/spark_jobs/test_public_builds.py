"""Files in the form of the public sets become datasets through the configs as they are."""

import gzip
from pathlib import Path
from typing import NamedTuple

import pytest
from pyspark.sql import SparkSession

from pad_dist.config.load import load_config
from spark_jobs.build_sequences import build_sequences
from tests.support.events import by_key

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parent / "samples"
CONFIGS = Path(__file__).parents[2] / "configs"


class Public(NamedTuple):
    """A public set.

    Attributes:
        events, items: its files.
        line: one event, of a user and an item at a day of January 2014.
        texts: what the catalogue of the sample says of three items.
        rejected: what is unusable in the sample.
    """

    events: str
    items: str
    line: str
    texts: dict[str, str]
    rejected: dict[str, int]


SETS = {
    "amazon2014": Public(
        "reviews_Beauty.json.gz",
        "meta_Beauty.json.gz",
        '{{"reviewerID": "{user}", "asin": "{item}", "overall": 5.0, "unixReviewTime": {seconds}}}',
        {
            "7806397051": "WAWO 15 Color Professional Makeup Eyeshadow Camouflage Facial Concealer "
            "Beauty, Makeup, Face, Concealers & Neutralizers",
            "9759091062": "Burt's \"Bees\" Créme & Co by Burt's Bees Beauty, Skin Care, Health & Personal Care",
            "9788072216": "9788072216",
        },
        {"interactions: line is corrupt": 1, "interactions: reviewerID is blank": 1, "items: line is corrupt": 1},
    ),
    "amazon2018": Public(
        "All_Beauty.json.gz",
        "meta_All_Beauty.json.gz",
        '{{"overall": 5.0, "reviewerID": "{user}", "asin": "{item}", "unixReviewTime": {seconds}}}',
        {
            "0143026860": "Loud 'N Clear™ Personal Sound Amplifier by idea village",
            "B0000530HU": "B0000530HU",
            "B00006L9LC": "Shampoo & Conditioner Beauty & Personal Care, Hair Care",
        },
        {"interactions: unixReviewTime is blank": 1, "items: asin is blank": 1},
    ),
    "amazon2023": Public(
        "All_Beauty.jsonl.gz",
        "meta_All_Beauty.jsonl.gz",
        '{{"rating": 5.0, "asin": "variant", "parent_asin": "{item}", "user_id": "{user}", "timestamp": {seconds}000}}',
        {
            "B00YQ6X8EO": "Howard LC0008 Leather Conditioner & Cleaner by Howard Products",
            "B07NTK7T5P": "B07NTK7T5P",
            "B097R46CSY": "[Set of 2] Brush Beauty, Tools & Accessories",
        },
        {"interactions: timestamp looks like seconds: set data.time_unit=s": 1},
    ),
    "movielens_1m": Public(
        "ratings.dat",
        "movies.dat",
        "{user}::{item}::5::{seconds}",
        {
            "1193": '"Misérables", Les: One; Two (1995) Drama',
            "3000": "3000",
            "661": "James and the Giant Peach (1996) Animation|Children's|Musical",
        },
        {"interactions: line is corrupt": 1, "interactions: user is blank": 1},
    ),
    "movielens_20m": Public(
        "ratings.csv",
        "movies.csv",
        "{user},{item},3.5,{seconds}",
        {
            "2": "Jumanji (1995) Adventure|Children|Fantasy",
            "29": "City of Lost Children, The (Cité des enfants perdus, La) (1995) (no genres listed)",
            "31": '"Great" & Small',
        },
        {"interactions: timestamp is blank": 1},
    ),
    "mind": Public(
        "behaviors.tsv",
        "news.tsv",
        "1\t{user}\t1/{day}/2014 9:05:58 AM\tN1\tN2-0 {item}-1",
        {
            "N39317": '"unclosed quote & more in lifestyle',
            "N55689": 'Charles Rogers, former "Lions" star, dies in sports',
            "N58114": "in news",
        },
        {
            "interactions: impressions is blank": 1,
            "interactions: line is corrupt": 1,
            "interactions: time is not of the form M/d/yyyy h:mm:ss a": 1,
        },
    ),
}
MIDNIGHT = 1388534400  # 2014-01-01 UTC


def write(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", SETS)
def test_a_public_set_becomes_a_dataset(spark: SparkSession, tmp_path: Path, name: str) -> None:
    public, sample = SETS[name], SAMPLES / name
    first, second, third = public.texts
    # Three users to keep, days out of order, each line twice; one item that nobody but the first user has.
    histories = {"11": ["999", first, second, third, first], "12": [second, third, first], "13": [third, first, second]}
    lines = [
        public.line.format(user=user, item=item, day=day, seconds=MIDNIGHT + 86400 * day)
        for user, items in histories.items()
        for day, item in enumerate(items, start=1)
    ]
    events = (sample / public.events.removesuffix(".gz")).read_bytes().rstrip(b"\n")
    write(tmp_path / public.events, b"\n".join([events, *(line.encode() for line in lines[::-1] * 2), b""]))
    write(tmp_path / public.items, (sample / public.items.removesuffix(".gz")).read_bytes())
    config = load_config(
        str(CONFIGS / f"{name}.yaml"),
        [
            *(f"data.interactions={tmp_path / public.events}", f"data.items={tmp_path / public.items}"),
            # The sizes of a sample.
            *("data.min_interactions=3", "data.shards=2", "data.max_rejected_share=1"),
            *(["data.min_item_interactions=2"] if name != "mind" else []),
            f"dataset={tmp_path}/dataset",
        ],
    )
    manifest = build_sequences(config, spark)

    sequences, items = by_key(config.dataset)
    if name != "mind":  # a core: with too few events an item goes, of the catalogue too
        histories["11"].remove("999")
        assert set(items) == set(public.texts)
    assert {row["user_key"]: row["items"] for row in sequences} == histories
    texts = {key: text for key, (_, _, text) in items.items()}
    assert texts.items() >= public.texts.items()
    assert manifest.rejected == public.rejected
