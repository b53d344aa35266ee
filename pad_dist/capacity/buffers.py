"""What start, step, evaluation and save need for a while: the largest of what each holds at one moment.

Sizes that vary from batch to batch are taken at their largest: every sequence of
full length, every item another.
"""

from __future__ import annotations

from pad_dist.capacity.lines import Line
from pad_dist.capacity.resident import dense_parameters
from pad_dist.capacity.sizes import DataSize, auxiliary_samples
from pad_dist.data.batches import StepSize
from pad_dist.evaluation.evaluate import LOOKUP_ROWS, USER_BYTES, VECTOR_BYTES
from pad_dist.evaluation.ranking import SCORE_BYTES
from pad_dist.model.experts.base import expert_class
from pad_dist.objectives.losses.base import LOSSES
from pad_dist.objectives.mixture import NDCG_BYTES, PARTITION_BYTES
from pad_dist.runtime.devices import Device
from pad_dist.sparse.initial import block_rows
from pad_dist.sparse.row_shards import row_range
from pad_dist.stages.spec import StageSpec


def phases(spec: StageSpec, data: DataSize, device: Device, world_size: int, step: StepSize) -> dict[str, list[Line]]:
    """Lines of each phase, on top of what is resident."""
    rows = row_range(data.items + 1, 0, world_size)[1]
    return {
        "start": _start(spec, data, device, rows),
        "step": _step(spec, data, world_size, step),
        "evaluation": _evaluation(spec, data, rows),
    }


def _start(spec: StageSpec, data: DataSize, device: Device, rows: int) -> list[Line]:
    config, on_gpu = spec.config, device.kind == "cuda"
    reads = spec.needs_text or spec.rows_from_text
    lines = [Line("first values of rows", block_rows(config.model.dim) * config.model.dim * 4, on_host=on_gpu)]
    if reads:
        # A file is read into Arrow, decoded and copied; on its way to a GPU the rank's whole range is on the host.
        read = 3 * min(config.text.rows_per_shard, data.items) * data.text_dim * 2
        lines.append(Line("text files", read + on_gpu * rows * data.text_dim * 2, on_host=on_gpu))
    if spec.rows_from_text or (reads and config.text.transform == "whiten"):
        # The matrix, its directions and their product, in float64; where rows start from texts, those and what they
        # are reduced to.
        lines.append(Line("covariance of text vectors", 4 * data.text_dim**2 * 8))
        if spec.rows_from_text:
            lines.append(Line("text vectors to start from", rows * (data.text_dim * 2 + 2 * config.model.dim * 4)))
    return lines


def _step(spec: StageSpec, data: DataSize, world_size: int, step: StepSize) -> list[Line]:
    config, model, text_dim = spec.config, spec.model_config, data.text_dim
    width = 2 if config.training.precision == "bf16" else 4
    # Of each table: rows sent, received, put in order, cast, and the gradients on the same way back.
    lookups = len(spec.tables) * step.unique * model.dim * 4 * 6
    if spec.needs_text:
        lookups += step.unique * text_dim * (2 * 2 + 4 * 3)
    activations = sum(expert_class(name).activation_values(model, text_dim, step) for name in spec.experts)
    if spec.auxiliary_loss:
        activations += spec.auxiliary_loss.head_values(model, text_dim, step)
    loss = LOSSES[type(config.training.loss)]
    losses = 1 + (len(spec.mixture.trained) if spec.mixture and spec.mixture.expert_loss else 0)
    logits = losses * loss.logit_bytes(step, model.dim) + _mixture_logits(spec, step)
    vectors = step.positions * _width_of_experts(spec, data) * 4 * 3
    lines = [
        Line("looked-up rows and gradients", lookups),
        Line("activations", width * activations),
        Line("logits", logits + vectors),
        Line("dense gradients on their way", 4 * dense_parameters(spec, text_dim)[1]),
    ]
    samples, dim = auxiliary_samples(spec, data, step)
    if samples:
        # Gathered and joined, then both sides centred or normalised, and scaled; linear and cosine MMD take less.
        size = world_size * samples * (2 * (2 * dim + 1) + 4 * dim) * 4
        lines.append(Line("samples of all ranks, aligned", size))
    return lines


def _width_of_experts(spec: StageSpec, data: DataSize) -> int:
    """Columns of the vectors of all experts side by side."""
    return sum(expert_class(name).width(spec.model_config, data.text_dim) for name in spec.experts)


def _mixture_logits(spec: StageSpec, step: StepSize) -> int:
    """Of all positions and negatives at once: the mixture's, for ndcg, and the experts', for their log-partitions."""
    settings = spec.mixture
    if settings is None:
        return 0
    logits = (step.sequences if settings.targets == "valid" else step.positions) * step.negatives
    # Where experts learn, what each of them made of its logits is kept.
    kept = len(settings.experts) if settings.trained else 1
    partitions = kept * logits * PARTITION_BYTES if settings.mix == "log_probabilities" else 0
    return partitions + (logits * NDCG_BYTES if settings.loss == "ndcg" else 0)


def _evaluation(spec: StageSpec, data: DataSize, rows: int) -> list[Line]:
    config = spec.config
    of_user = _width_of_experts(spec, data) * 4
    # A mixture of log-probabilities is weighed beside the experts' own vectors.
    width = of_user * (2 if spec.log_mix else 1)
    block = min(rows, max(1, VECTOR_BYTES // width))
    per_user = of_user + 8 * (2 + -(-data.interactions // data.users))
    users = min(data.users, config.evaluation.batch_size + (0 if block == rows else USER_BYTES // per_user))
    scores = min(users * block * 4, max(SCORE_BYTES, 2 * block * 4))
    looked_up = len(spec.tables) * config.model.dim * 4 * 6 + 2 * (width if spec.experts != ("id",) else 0)
    if spec.needs_text:
        looked_up += data.text_dim * (2 * 2 + 4 * 3)
    return [
        # And of each its item_index, its place among the rows and a padded copy for the search.
        Line("item vectors", block * (width + 3 * 8)),
        # The next ones are computed while the last ones are in use.
        Line("scores", 2 * scores),
        # Answered, received, put in order, cut and copied; then what the dense part makes of them.
        Line("looked-up rows", min(LOOKUP_ROWS, rows) * looked_up),
        # As they come, joined, ordered by target.
        Line("users", 3 * users * per_user),
    ]
