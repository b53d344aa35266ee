"""What start, step, evaluation and save need for a while: the largest of what each holds at one moment.

Sizes that vary from batch to batch are taken at their largest: every sequence of
full length, every item another.
"""

from __future__ import annotations

from pad_dist.capacity.held import dense_parameters
from pad_dist.capacity.lines import Line
from pad_dist.capacity.sizes import DataSize, StepSize, compared
from pad_dist.config import Config, StageName
from pad_dist.devices import Device
from pad_dist.evaluation.evaluate import LOOKUP_ROWS, USER_BYTES, VECTOR_BYTES
from pad_dist.evaluation.ranking import SCORE_BYTES
from pad_dist.objectives.recommendation import CHUNK_LOGITS
from pad_dist.sparse.initial import block_rows
from pad_dist.sparse.row_shards import row_range
from pad_dist.stages.parts import parts


def phases(
    config: Config, stage: StageName, data: DataSize, device: Device, world_size: int, step: StepSize
) -> dict[str, list[Line]]:
    """Lines of each phase, on top of what is held."""
    rows = row_range(data.items + 1, 0, world_size)[1]
    return {
        "start": _start(config, stage, data, device, rows),
        "step": _step(config, stage, data, world_size, step),
        "evaluation": _evaluation(config, stage, data, rows),
    }


def _start(config: Config, stage: StageName, data: DataSize, device: Device, rows: int) -> list[Line]:
    on_gpu = device.kind == "cuda"
    made_of = parts(config, stage)
    reads = made_of.has_text or made_of.text_rows
    lines = [Line("first values of rows", block_rows(config.model.dim) * config.model.dim * 4, on_host=on_gpu)]
    if reads:
        # A file is read into Arrow, decoded and copied; on its way to a GPU the rank's whole range is on the host.
        read = 3 * min(config.text.rows_per_shard, data.items) * data.text_dim * 2
        lines.append(Line("text files", read + on_gpu * rows * data.text_dim * 2, on_host=on_gpu))
    if made_of.text_rows or (reads and config.text.transform == "whiten"):
        # The matrix, its directions and their product, in float64; where rows start from texts, those and what they
        # are reduced to.
        lines.append(Line("covariance of text vectors", 4 * data.text_dim**2 * 8))
        if made_of.text_rows:
            lines.append(Line("text vectors to start from", rows * (data.text_dim * 2 + 2 * config.model.dim * 4)))
    return lines


def _step(config: Config, stage: StageName, data: DataSize, world_size: int, step: StepSize) -> list[Line]:
    model, made_of = config.model, parts(config, stage)
    width = 2 if config.training.precision == "bf16" else 4
    encoders = sum(name != "neighbours" for name in made_of.experts)
    width_of_experts = _width_of_experts(config, stage, data)
    # Of each table: rows sent, received, put in order, cast, and the gradients on the same way back.
    lookups = len(made_of.tables) * step.unique * model.dim * 4 * 6
    if made_of.has_text:
        lookups += step.unique * data.text_dim * (2 * 2 + 4 * 3)
    # Of a position in a block: inputs and outputs of norms, projections, attention, feed-forward and dropouts.
    per_position = 30 * model.dim + 3 * model.heads * model.max_length
    encoder = encoders * step.positions * width * (4 * model.dim + model.blocks * per_position)
    if "neighbours" in made_of.experts:
        # As they come, in a grid, summed there, cut out of it; and the unit vectors of the items.
        encoder += (4 * step.positions + step.unique) * data.text_dim * width
    projected = sum(name in ("aligned", "text") for name in made_of.experts) * step.unique * model.dim * width
    projector = projected * 3 * (1 + model.projector_layers)
    if made_of.head:
        # Its input, what lies between its two layers, and its output, of every item or position.
        rows = step.unique if made_of.head == "rlmrec_con" else step.positions
        projector += rows * width * 2 * (data.text_dim + model.dim)
    scored = 1
    if stage == "disentangle" and config.disentangle.expert_loss:
        scored += len(config.disentangle.trained)
    own_vectors = step.positions * width_of_experts * 4 * 3
    lines = [
        Line("looked-up rows and gradients", lookups),
        Line("activations", encoder + projector),
        Line("logits", scored * _logits(config, step) + _whole_logits(config, stage, step) + own_vectors),
        Line("dense gradients on their way", 4 * dense_parameters(config, stage, data.text_dim)[1]),
    ]
    samples, dim = compared(config, stage, data, step)
    if samples:
        # Gathered and joined, then both sides centred or normalised, and scaled; linear and cosine MMD take less.
        size = world_size * samples * (2 * (2 * dim + 1) + 4 * dim) * 4
        lines.append(Line("samples of all ranks, aligned", size))
    return lines


def _width_of_experts(config: Config, stage: StageName, data: DataSize) -> int:
    """Columns of the vectors of all experts side by side."""
    widths = {"neighbours": data.text_dim}
    return sum(widths.get(name, config.model.dim) for name in parts(config, stage).experts)


def _logits(config: Config, step: StepSize) -> int:
    """Of one loss; where users or items are of several experts, `own_vectors` counts them."""
    match config.training.loss.kind:
        case "bce":
            return 0
        case "gbce":
            return step.positions * step.negatives * (3 * 4 + 1)
        case "sampled_softmax" | "softmax":
            # The negatives' vectors and gradients, and one chunk (of a CPU; a GPU's is 80 MiB, little to it).
            chunk = max(CHUNK_LOGITS["cpu"], step.negatives) * (4 + 1)
            return step.negatives * config.model.dim * 4 * 2 + chunk


def _whole_logits(config: Config, stage: StageName, step: StepSize) -> int:
    """Of all positions and negatives at once: the mixture's, for ndcg, and the experts', for their log-partitions."""
    settings = config.disentangle
    if stage != "disentangle":
        return 0
    logits = (step.sequences if settings.targets == "valid" else step.positions) * step.negatives
    # Where experts learn, what each of them made of its logits is kept.
    kept = len(settings.experts) if settings.trained else 1
    partitions = kept * logits * (3 * 4 + 1) if settings.mix == "log_probabilities" else 0
    return partitions + (logits * (4 * 4 + 1) if settings.loss == "ndcg" else 0)


def _evaluation(config: Config, stage: StageName, data: DataSize, rows: int) -> list[Line]:
    made_of = parts(config, stage)
    of_user = _width_of_experts(config, stage, data) * 4
    # A mixture of log-probabilities is weighed beside the experts' own vectors.
    width = of_user * (2 if made_of.log_mix else 1)
    block = min(rows, max(1, VECTOR_BYTES // width))
    per_user = of_user + 8 * (2 + -(-data.interactions // data.users))
    users = min(data.users, config.evaluation.batch_size + (0 if block == rows else USER_BYTES // per_user))
    scores = min(users * block * 4, max(SCORE_BYTES, 2 * block * 4))
    looked_up = len(made_of.tables) * config.model.dim * 4 * 6 + 2 * (width if made_of.experts != ("id",) else 0)
    if made_of.has_text:
        looked_up += data.text_dim * (2 * 2 + 4 * 3)
    return [
        # And of each its item_index, its place among the rows and a padded copy for the search.
        Line("item vectors", block * (width + 3 * 8)),
        # The next ones are computed while the last ones are there.
        Line("scores", 2 * scores),
        # Answered, received, put in order, cut and copied; then what the dense part makes of them.
        Line("looked-up rows", min(LOOKUP_ROWS, rows) * looked_up),
        # As they come, joined, ordered by target.
        Line("users", 3 * users * per_user),
    ]
