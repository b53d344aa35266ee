"""The section of a run config that shapes a dataset: raw inputs, filters and splits."""

from __future__ import annotations

import re
from string import Formatter
from typing import Literal, Self

from pydantic import Field, model_validator

from pad_dist.config.base import Section


class Columns(Section):
    """Names of the columns that are read from the events and from the catalogue."""

    user: str = "user"
    """Column of the events that has the user key: text or a whole number."""
    item: str = "item"
    """Column of the events that has the item key: text or a whole number."""
    time: str = "time"
    """Column of the events that has the time: Unix time in `data.time_unit`, text in the form of `data.time_format`, a
    Parquet date or timestamp, or any number from 0 that grows with time."""
    rating: str | None = None
    """Column of the events that has the rating; only `data.min_rating` reads it. null: the events have no ratings."""
    item_key: str = "item"
    """Column of the catalogue that has the item key, which is what `data.columns.item` of an event names."""
    text: str | tuple[str, ...] = "title"
    """Text of an item: a column of the catalogue, or a list of pieces that are joined by blanks. A piece is a column
    name or words around one, such as "by {brand}". A piece whose column is blank is left out; a JSON array in a column
    becomes its entries with commas."""
    item_pattern: str | None = None
    """Regular expression with one group, for events whose item column has a list in one string: each match is one
    event, and its group is the item key. null takes the column as one item key."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.text:
            raise ValueError("data.columns.text needs a column")
        for piece in [self.text] if isinstance(self.text, str) else self.text:
            try:
                fields = list(Formatter().parse(piece)) if "{" in piece else []
            except ValueError:
                fields = [("", "", "", None)]
            if any(name == "" or spec or conversion for _, name, spec, conversion in fields):
                raise ValueError(f"data.columns.text: {piece!r} is not of the form 'words {{column}} words'")
        if self.item_pattern is not None:
            try:
                groups = re.compile(self.item_pattern).groups
            except re.error as error:
                raise ValueError(f"data.columns.item_pattern is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"data.columns.item_pattern needs one group, not {groups}")
        return self


class InputFormat(Section):
    """Format of the files of one input; the defaults take CSV with a header line, JSON lines and Parquet."""

    kind: Literal["auto", "csv", "json", "python", "parquet"] = "auto"
    """File format. `auto` goes by the extension: .csv, .json, .jsonl, .ndjson (these may be .gz) or .parquet. `python`
    is one dict literal per line, as in the Amazon 2014 metadata."""
    separator: str = Field(",", min_length=1)
    """One or more characters between the values of a CSV line."""
    names: tuple[str, ...] = ()
    """Column names of CSV files that have no header line; an empty list reads the header line."""
    quoted: bool = True
    """Whether quotes may enclose CSV values; false reads a quote as any other character."""
    encoding: Literal["utf-8", "iso-8859-1"] = "utf-8"
    """Character encoding of CSV files."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        of_csv = {"separator", "names", "quoted", "encoding"} & self.model_fields_set
        if of_csv and self.kind not in ("auto", "csv"):
            raise ValueError(f"kind {self.kind} has no {', '.join(sorted(of_csv))}: for csv alone")
        return self


class SyntheticConfig(Section):
    """Generated demo data, which `pad-dist run` makes in place of raw inputs (pad_dist.dataset.synthetic)."""

    events: int = Field(40_000, ge=1000)
    """Number of events."""
    users: int = Field(3_000, ge=100)
    """Number of users; each has at least three events."""
    items: int = Field(1_500, ge=192)
    """Number of items in the catalogue."""


class SplitConfig(Section):
    """Which events are for training, validation and test (docs/method.md, "Data and split")."""

    kind: Literal["leave_one_out", "time"] = "leave_one_out"
    """`leave_one_out`: a user's last event is the test target, the one before it the validation target. `time`: events
    before `data.split.valid_from` are for training; the validation target is a user's last event from then until
    `data.split.test_from`, the test target the last event from then on."""
    valid_from: float | None = None
    """Time of the first event of the validation period, in seconds as the dataset stores them: Unix seconds also where
    the input has milliseconds or dates, a plain number as it is. Needed by kind `time` and refused by the other one."""
    test_from: float | None = None
    """Time of the first event of the test period, in the same seconds; later than `data.split.valid_from`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.valid_from is not None and self.test_from is not None
        if (self.kind == "time") != given or (given and not self.valid_from < self.test_from):  # type: ignore[operator]
            raise ValueError("data.split.kind=time, and it alone, needs valid_from < test_from")
        return self


class DataConfig(Section):
    """Raw inputs, and how they become the histories of a dataset (docs/method.md, "Data and split")."""

    interactions: str = ""
    """URL of the events: a file, a folder or a glob pattern of CSV, JSON-lines (both may be .gz) or Parquet files. If
    it is empty, `data.synthetic` can generate them."""
    items: str = ""
    """URL of the catalogue, in the same forms as the events."""
    synthetic: SyntheticConfig | None = None
    """Generated demo data, which `pad-dist run` writes to `<out>/raw` when `data.interactions` and `data.items` are
    empty. null generates nothing."""
    events_format: InputFormat = InputFormat()
    """Format of the event files."""
    items_format: InputFormat = InputFormat()
    """Format of the catalogue files."""
    columns: Columns = Columns()
    """Names of the columns that are read from the events and from the catalogue."""
    time_unit: Literal["s", "ms", "us"] = "s"
    """Unit of a numeric time column: seconds, milliseconds or microseconds. A dataset stores seconds; date and
    timestamp columns need no unit."""
    time_format: str | None = None
    """Pattern of a time column that is text, in Spark's notation, such as "M/d/yyyy h:mm:ss a"; times are read as UTC.
    null expects numbers, dates or timestamps."""
    min_rating: float | None = None
    """Lowest rating of the events that are kept; needs `data.columns.rating`. null keeps all events."""
    min_interactions: int = Field(5, ge=3)
    """Smallest number of events of a user; users with fewer get no history."""
    min_item_interactions: int = Field(0, ge=0)
    """Smallest number of events of an item; items with fewer are left out, of the catalogue too. The filters of items
    and users (`data.min_interactions`) are repeated until both are satisfied (k-core). 0 keeps all items."""
    max_history: int | None = Field(None, ge=3)
    """Number of events up to which a history stays whole; a longer one keeps its last `data.keep_last` events. null
    keeps every history whole."""
    keep_last: int | None = Field(None, ge=3)
    """Number of events, the last ones, that remain of a history longer than `data.max_history`."""
    split: SplitConfig = SplitConfig()
    """Which events are for training, validation and test."""
    erase_users: str = ""
    """URL of the keys of users to erase, one column named as `data.columns.user`: their events leave the new version.
    Empty erases none."""
    erase_items: str = ""
    """URL of the keys of items to erase, one column named as `data.columns.item_key`: key, text and events leave the
    new version, and the index is not given again. Empty erases none."""
    incremental: bool = True
    """Read only input files that are new since the last version; false reads all of them again. Known items keep their
    index either way."""
    shards: int = Field(8, ge=1)
    """Number of sequence files and of event files; a hash of the user picks the file. After a change all inputs are
    read again."""
    max_rejected_share: float = Field(0.01, ge=0, le=1)
    """Largest share of input rows that may be unreadable; above it the build fails."""
    spark_master: str = "local[*]"
    """Spark master of the ETL jobs; `local[*]` is this machine with all its cores. Under spark-submit its own master is
    used instead."""
    spark_conf: dict[str, str] = Field(default={})
    """Spark settings by name, which override those of `spark_jobs/session.py`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.max_history is None) != (self.keep_last is None):
            raise ValueError("set data.max_history and data.keep_last together")
        if self.min_rating is not None and self.columns.rating is None:
            raise ValueError("data.min_rating needs data.columns.rating")
        if self.time_format is not None and self.time_unit != "s":
            raise ValueError("data.time_format reads text, data.time_unit numbers: set one of them")
        if self.synthetic and bool(self.interactions) != bool(self.items):
            raise ValueError("beside data.synthetic set both data.interactions and data.items, or neither")
        return self
