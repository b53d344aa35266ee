"""Values of a run config that cannot work, each refused in one line."""

import pytest

from tests.support.refusal import refusal


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"data": {"split": {"kind": "time", "valid_from": 5}}}, "needs valid_from < test_from"),
        ({"data": {"split": {"kind": "time", "valid_from": 5, "test_from": 5}}}, "needs valid_from < test_from"),
        ({"data": {"split": {"valid_from": 5, "test_from": 6}}}, "data.split.kind=time, and it alone"),
        ({"data": {"time_unit": "ms", "time_format": "M/d/yyyy"}}, "set one of them"),
        ({"data": {"columns": {"text": []}}}, "data.columns.text needs a column"),
        ({"data": {"columns": {"text": ["by {brand!r}"]}}}, "is not of the form 'words {column} words'"),
        ({"data": {"columns": {"text": "by {"}}}, "is not of the form 'words {column} words'"),
        ({"data": {"columns": {"item_pattern": "("}}}, "item_pattern is no regular expression"),
        ({"data": {"columns": {"item_pattern": "a-1"}}}, "item_pattern needs one group, not 0"),
        ({"data": {"items_format": {"kind": "python", "separator": ";"}}}, "kind python has no separator"),
        ({"text": {"reduce": {"kind": "pca"}}}, "need text.reduce.dim"),
        ({"text": {"reduce": {"dim": 8}}}, "text.reduce.kind=pca or whiten"),
        ({"out": "runs/a", "warm_start": "./runs/a/"}, "is where this run writes"),
    ],
)
def test_data_and_text_settings_that_contradict_one_another(values: dict[str, object], told: str) -> None:
    assert told in refusal(values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": ""}, "name: String should have at least 1 character"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"model": {"dim": 6, "backbone": {"heads": 1}}}, "model.dim=6 must be a multiple of 4 for TorchRec tables"),
        ({"align": {"gamma": float("inf")}}, "align.gamma: Input should be a finite number"),
        (
            {"disentangle": {"freeze": ["text"]}},
            "freeze=['text'] keeps a text expert that nothing has trained: set trained_text=true",
        ),
        (
            {"disentangle": {"freeze": ["id", "aligned", "text"], "trained_text": True, "gate": "none"}},
            "is all of the experts that learn, which leaves the gate to learn: that needs gate=frequency or smooth",
        ),
        ({"disentangle": {"trained_text": True, "experts": ["id", "aligned"]}}, "but text is not one of experts"),
        ({"disentangle": {"freeze": ["item_knn"]}}, "freeze=['item_knn'] must be some of experts="),
        (
            {"disentangle": {"experts": ["text", "item_knn"], "freeze": ["item_knn"]}},
            "item_knn has no weights to freeze: leave it out of freeze",
        ),
        ({"disentangle": {"targets": "valid"}}, "targets=valid is for the gate alone: set freeze="),
        (
            {"disentangle": {"mix": "log_probabilities"}, "training": {"loss": {"kind": "bce"}}},
            "disentangle.mix=log_probabilities needs a softmax",
        ),
        (
            {"disentangle": {"loss": "ndcg"}, "training": {"loss": {"kind": "gbce"}}},
            "disentangle.loss=ndcg needs a softmax, not training.loss.kind=gbce: set disentangle.loss=recommendation",
        ),
        (
            {
                "disentangle": {"mix": "log_probabilities", "loss": "ndcg", "rare_power": 0.5},
                "training": {"loss": {"kind": "bce"}},
            },
            "set disentangle.mix=logits disentangle.loss=recommendation disentangle.rare_power=0",
        ),
        ({"disentangle": {"rare_power": 0.5}}, "rare_power=0.5 belongs to loss=ndcg"),
        (
            {"disentangle": {"mix": "log_probabilities"}, "training": {"loss": {"in_batch": 8}}},
            "needs negatives of known odds: set training.loss.log_q=true",
        ),
        (
            {
                "disentangle": {"freeze": ["id", "aligned", "text"], "trained_text": True, "targets": "valid"},
                "training": {"loss": {"in_batch": 8, "log_q": True}},
            },
            "the odds of validation targets are not known: set training.loss.in_batch=0",
        ),
        ({"method": "bert4rec"}, "method: Input should be 'id', 'text', 'whitenrec'"),
        (
            {"method": "ctrl", "align": {"alignment": {"kind": "fine_grained", "sub_vectors": 3}}},
            "align.alignment.sub_vectors=3 must divide model.dim=128",
        ),
        (
            {"method": "llm_init", "sparse": {"hashed": {"rows": 1 << 14}}},
            "method=llm_init starts a row for every item: leave sparse.hashed out",
        ),
        (
            {"disentangle": {"freeze": ["id"], "experts": ["aligned", "text"]}},
            "freeze=['id'] must be some of experts=['aligned', 'text']",
        ),
        ({"disentangle": {"experts": ["id", "id"]}}, "experts=['id', 'id'] names one twice"),
        ({"disentangle": {"experts": ["id"]}}, "disentangle.experts: Tuple should have at least 2"),
        ({"align": {"anchor": False, "gamma": 0}}, "anchor=false and gamma=0 leave nothing to learn from"),
        (
            {"align": {"alignment": {"kind": "infonce", "kernel": "linear"}}},
            "align.alignment.kernel belongs to kind mk_mmd, not infonce",
        ),
        (
            {"training": {"loss": {"kind": "gbce", "in_batch": 8}}},
            "training.loss.in_batch belongs to kind sampled_softmax, not gbce",
        ),
        (
            {"training": {"loss": {"kind": "softmax", "log_q": True}}},
            "training.loss.log_q belongs to kind sampled_softmax, not softmax",
        ),
        ({"model": {"backbone": "ligr"}}, "model.backbone is a section, not a value; set model.backbone.kind=ligr"),
        ({"sparse": {"sharding": "column_wise"}}, "sparse.sharding=column_wise would keep one rowwise_adagrad state"),
        (
            {"sparse": {"sharding": "grid", "optimizer": "partial_rowwise_adam"}},
            "sparse.sharding=grid would keep one partial_rowwise_adam state",
        ),
        (
            {"sparse": {"sharding": "grid", "optimizer": "adagrad"}, "model": {"dim": 12}},
            "model.dim=12 must be a multiple of 8 for TorchRec tables cut into 2 by sparse.grid_columns",
        ),
        ({"sparse": {"backend": "torch", "optimizer": "adam"}}, "sparse.optimizer=adam is fbgemm's"),
        ({"sparse": {"backend": "torch", "uvm": True}}, "sparse.uvm is fbgemm's"),
        (
            {"sparse": {"uvm": True}, "align": {"ema_decay": 0.5}},
            "align.ema_decay exchanges whole tables at each validation, past the cache of sparse.uvm",
        ),
        (
            {"sparse": {"backend": "torch", "optimizer": "adamw", "precision": "fp16"}},
            "sparse.optimizer=adamw steps fp32 rows alone",
        ),
        ({"sparse": {"hashed": {"rows": 3000, "buckets": 3000}}}, "buckets=3000 must be a power of two"),
        (
            {"sparse": {"hashed": {"rows": 3000, "buckets": 1024}}},
            "rows=3000 must be a multiple of sparse.hashed.buckets=1024: use 3072",
        ),
        ({"data": {"synthetic": {}, "items": "x.csv"}}, "set both data.interactions and data.items, or neither"),
    ],
)
def test_values_that_cannot_work_are_refused_before_anything_starts(values: dict[str, object], told: str) -> None:
    assert told in refusal(values)
