"""One CUDA device takes the steps of the CPU, whatever the loss, the backbone and the method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.parity import METHODS, OTHERS, Losses, launch, write_settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
KERNELS = [f"0 fp32 align.alignment.kernel={kernel}" for kernel in ("laplace", "linear", "cosine")]
OPTIMIZERS = [f"0 fp32 sparse.optimizer={name}" for name in ("adagrad", "adamw", "sgd")]
EVERY = ["0 fp32", "0 bf16", *OTHERS, *METHODS, *KERNELS, *OPTIMIZERS]
VARIANTS = [f"{variant} sparse.backend=torch" for variant in EVERY]


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Losses]:
    """20 losses per device, variant and stage."""
    by_device = {}
    for device in ("cpu", "cuda"):
        folder = tmp_path_factory.mktemp(device)
        by_device[device] = launch(1, write_settings(folder, device=device), folder / "losses.json", VARIANTS)
    return by_device


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cuda_device_takes_the_steps_of_the_cpu(losses: dict[str, Losses], variant: str) -> None:
    cpu, cuda = (losses[device][variant] for device in ("cpu", "cuda"))
    assert list(cuda) == list(cpu)
    # cuDNN computes convolutions and recurrences in TF32, of 10 bits; bf16 has 7.
    coarse = any(name in variant for name in ("bf16", "caser", "gru4rec"))
    for stage in cpu:
        np.testing.assert_allclose(cuda[stage], cpu[stage], rtol=1e-2 if coarse else 1e-5, err_msg=stage)
