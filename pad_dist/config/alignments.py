"""Sections of the alignment losses; `pad_dist.objectives.alignments` holds the class of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pad_dist.config.base import Section, default_kind

KernelName = Literal["gaussian_mixture", "gaussian", "laplace", "linear", "cosine"]


class MkMmdConfig(Section):
    """MK-MMD: makes the distributions of texts and rows alike (docs/method.md, "MK-MMD")."""

    kind: Literal["mk_mmd"] = "mk_mmd"
    """Maximum mean discrepancy between the distributions of texts and rows: the paper's alignment."""
    kernel: KernelName = "gaussian_mixture"
    """Kernel; m is the mean squared distance of all pairs. `gaussian_mixture`: `exp(-|x - y|^2 / (2 a m))`, summed over
    a = 1/8, 1/4, ..., 2 (the paper's). `gaussian`: a = 1. `laplace`: `exp(-|x - y| / sqrt(m))`. `linear`: the inner
    product, which compares means alone. `cosine`: the inner product of vectors of length 1."""
    samples: Literal["occurrences", "unique"] = "occurrences"
    """`occurrences`: every occurrence of an item in the batch, padding too, is a sample (the paper's). `unique`: each
    item is one sample."""


class InfoNceConfig(Section):
    """InfoNCE: draws the text and the row of one item together, and apart from all others (docs/method.md,
    "InfoNCE")."""

    kind: Literal["infonce"] = "infonce"
    """Symmetric cross-entropy that matches each text with the row of its item among those of the batch, as in CLIP."""
    temperature: float = Field(0.07, gt=0)
    """Divides the similarities of texts and rows; a lower value tells near vectors apart more sharply."""


class FineGrainedConfig(Section):
    """The fine-grained InfoNCE of CTRL, whose values are ours (arXiv 2306.02841; docs/method.md, "InfoNCE")."""

    kind: Literal["fine_grained"] = "fine_grained"
    """InfoNCE on sub-vectors: each one counts its best match on the other side, as in CTRL."""
    sub_vectors: int = Field(4, ge=1)
    """Number of sub-vectors of equal width that each vector is cut into; it must divide `model.dim`. 1 compares whole
    vectors."""
    temperature: float = Field(0.07, gt=0)
    """Divides the similarities of texts and rows; a lower value tells near vectors apart more sharply."""


AlignmentConfig = Annotated[
    MkMmdConfig | InfoNceConfig | FineGrainedConfig, Field(discriminator="kind"), default_kind("mk_mmd")
]
