"""What one step sends: bytes that leave a rank for the others."""

from __future__ import annotations

from pad_dist.capacity.held import dense_parameters
from pad_dist.capacity.lines import Line
from pad_dist.capacity.sizes import DataSize, StepSize, compared
from pad_dist.config import Config, StageName
from pad_dist.sparse.placement import Block
from pad_dist.stages.parts import parts, reads_frequency


def traffic(
    config: Config, stage: StageName, data: DataSize, world_size: int, step: StepSize, blocks: list[Block]
) -> list[Line]:
    """Lines of the collectives of one step; rows are spread evenly, so that 1 / world_size of them stay on the rank.

    Dense gradients go round a ring: reduced and gathered, or (ZeRO 1 and higher) reduced to their owners, who then
    give out new weights; ZeRO 3 gathers weights for forward and for backward instead.
    """
    others = (world_size - 1) / world_size
    made_of, dim = parts(config, stage), config.model.dim
    tables, has_text = len(made_of.tables), made_of.has_text
    rows = tables * step.unique * dim * 4
    frozen = step.unique * (1 + 4 * reads_frequency(config, stage) + (data.text_dim * 2 if has_text else 0))
    # Every part of a row that is cut by columns is asked for by itself.
    cuts = len({(block.table, block.first_column) for block in blocks})
    ids = 8 * step.unique * (cuts + 1 + has_text)
    everything, trained = dense_parameters(config, stage, data.text_dim)
    width = 2 if config.training.precision == "bf16" else 4
    zero = config.training.zero_stage
    gathered = {0: trained, 1: trained, 2: trained, 3: 2 * everything}[zero]
    sent = [
        ("ids of rows", ids * others),
        ("rows, forward", rows * others),
        ("gradients of rows, backward", rows * others),
        ("text vectors and item columns", frozen * others),
        ("dense gradients", width * trained * others),
        ("dense weights" if zero else "dense gradients, summed", width * gathered * others),
    ]
    samples, width = compared(config, stage, data, step)
    if samples:
        sent.append(("samples of the alignment", samples * (2 * width + 1) * 4 * (world_size - 1)))
    return [Line(name, int(size)) for name, size in sent]
