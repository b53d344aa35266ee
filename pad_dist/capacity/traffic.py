"""What one step sends: bytes that leave a rank for the others."""

from __future__ import annotations

from pad_dist.capacity.lines import Line
from pad_dist.capacity.resident import dense_parameters
from pad_dist.capacity.sizes import DataSize, auxiliary_samples
from pad_dist.data.batches import StepSize
from pad_dist.sparse.placement import Block
from pad_dist.stages.spec import StageSpec


def traffic(spec: StageSpec, data: DataSize, world_size: int, step: StepSize, blocks: list[Block]) -> list[Line]:
    """Lines of the collectives of one step; rows are spread evenly, so that 1 / world_size of them stay on the rank.

    Dense gradients go round a ring: reduced and gathered, or (ZeRO 1 and higher) reduced to their owners, who then
    give out new weights; ZeRO 3 gathers weights for forward and for backward instead.
    """
    others = (world_size - 1) / world_size
    training, dim = spec.config.training, spec.config.model.dim
    tables, has_text = len(spec.tables), spec.needs_text
    rows = tables * step.unique * dim * 4
    frozen = step.unique * (1 + 4 * spec.needs_frequency + (data.text_dim * 2 if has_text else 0))
    # Every piece of a row that is cut by columns is asked for by itself.
    cuts = len({(block.table, block.first_column) for block in blocks})
    ids = 8 * step.unique * (cuts + 1 + has_text)
    everything, trained = dense_parameters(spec, data.text_dim)
    width = 2 if training.precision == "bf16" else 4
    zero = training.zero_stage
    gathered = {0: trained, 1: trained, 2: trained, 3: 2 * everything}[zero]
    sent = [
        ("ids of rows", ids * others),
        ("rows, forward", rows * others),
        ("gradients of rows, backward", rows * others),
        ("text vectors and item columns", frozen * others),
        ("dense gradients", width * trained * others),
        ("dense weights" if zero else "dense gradients, summed", width * gathered * others),
    ]
    samples, width = auxiliary_samples(spec, data, step)
    if samples:
        sent.append(("samples of the alignment", samples * (2 * width + 1) * 4 * (world_size - 1)))
    return [Line(name, int(size)) for name, size in sent]
