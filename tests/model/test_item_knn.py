"""Item-kNN by content against sums of cosines, taken one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from pad_dist.config import ModelConfig
from pad_dist.model.experts.base import build_expert
from pad_dist.model.experts.item_knn import ItemKnnExpert


@pytest.mark.parametrize(("decay", "temperature", "seed"), [(0.9, 0.2, 0), (0.5, 1.0, 1), (1.0, 0.5, 2)])
def test_a_score_is_the_decayed_sum_of_cosines_with_the_items_so_far(
    decay: float, temperature: float, seed: int
) -> None:
    item_knn = {"decay": decay, "temperature": temperature}
    config = ModelConfig.model_validate({"dim": 8, "max_length": 4, "item_knn": item_knn})
    expert = build_expert("item_knn", config, text_dim=3)
    assert isinstance(expert, ItemKnnExpert) and expert.dim == 3 and not list(expert.parameters())
    texts = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    items = expert.item_vectors({"text": texts})
    histories = [[3], [1, 5, 2, 8], [4, 4, 7]]
    inputs = torch.tensor([*itertools.chain(*histories)])
    lengths = torch.tensor([len(history) for history in histories])
    scores = expert.encoder(items[inputs], lengths) @ items.T
    position = 0
    for history in histories:
        for last in range(len(history)):
            for item, text in enumerate(texts):
                cosines = [
                    decay ** (last - place) * float(F.cosine_similarity(texts[seen], text, dim=0))
                    for place, seen in enumerate(history[: last + 1])
                ]
                assert float(scores[position, item]) == pytest.approx(sum(cosines) / temperature, abs=1e-9)
            position += 1
    assert position == len(scores)


def test_an_item_without_a_text_scores_zero_for_everybody() -> None:
    expert = build_expert("item_knn", ModelConfig(dim=8), text_dim=3)
    items = expert.item_vectors({"text": torch.tensor([[0.0, 0, 0], [3, 0, 4]])})
    assert items.tolist() == [[0, 0, 0], pytest.approx([0.6, 0, 0.8])]
    empty = expert.encoder(items[:0], torch.zeros(0, dtype=torch.int64))
    assert empty.shape == (0, 3)
