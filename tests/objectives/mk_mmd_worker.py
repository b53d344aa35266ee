"""One rank of test_mk_mmd's process group: its slice in, its share of the loss and its gradients out.

Usage: mk_mmd_worker.py RANK WORLD_SIZE DIRECTORY
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pad_dist.objectives.mk_mmd import mk_mmd


def main(rank: int, world_size: int, directory: Path) -> None:
    dist.init_process_group(
        "gloo", f"file://{directory}/store", datetime.timedelta(seconds=30), world_size=world_size, rank=rank
    )
    results = []
    for text, anchor, weights in torch.load(directory / f"in{rank}.pt"):
        text.requires_grad_()
        anchor.requires_grad_()
        share = mk_mmd(text, anchor, weights)
        share.backward()
        results.append((share.detach(), text.grad, anchor.grad))
    torch.save(results, directory / f"out{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
