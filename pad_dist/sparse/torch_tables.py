"""The one-process backend: plain tensors, the same update rules as fbgemm's fused optimizers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pad_dist.config import SparseConfig
from pad_dist.sparse.spec import ADAGRAD_EPS, Tables, TableShard, TableSpec, rows_of_tables


class TorchTables(Tables):
    """Complete tables in this process, for machines without fbgemm and for dense AdamW."""

    def __init__(self, spec: TableSpec, config: SparseConfig, device: torch.device) -> None:
        self.spec = spec
        self._tables = {name: _Table(spec, config, device) for name in spec.names}

    def lookup(self, items: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        wanted = rows_of_tables(items, self.spec.names)
        return {name: table.lookup(wanted[name]) for name, table in self._tables.items()}

    def shards(self) -> list[TableShard]:
        shards = []
        for name, table in self._tables.items():
            states = {f"{name}.{key}": value for key, value in table.optimizer_state()}
            for key, value in {name: table.weight.data, **states}.items():
                value = value.reshape(value.shape or (1,))  # AdamW's step count is a scalar
                shards.append(
                    TableShard(key, value, (0,) * value.ndim, tuple(value.shape), "all" if table.is_dense else "rows")
                )
        return shards

    def set_lr(self, lr: float) -> None:
        for table in self._tables.values():
            table.set_lr(lr)


class _Table:
    def __init__(self, spec: TableSpec, config: SparseConfig, device: torch.device) -> None:
        dtype = torch.float32 if config.precision == "fp32" else torch.float16
        self.weight = torch.nn.Parameter(torch.zeros(spec.rows, spec.dim, device=device, dtype=dtype))
        self._lr = spec.lr
        self._optimizer = config.optimizer
        self._adamw: torch.optim.AdamW | None = None
        if self._optimizer == "adamw":
            self._adamw = torch.optim.AdamW([self.weight], lr=spec.lr, weight_decay=spec.weight_decay)
        else:
            width = spec.dim if self._optimizer == "adagrad" else 1
            self._sum_squares = torch.zeros(spec.rows, width, device=device)

    def lookup(self, items: Tensor) -> Tensor:
        rows = self.weight.detach()[items].float().requires_grad_(torch.is_grad_enabled())
        if rows.requires_grad:
            # Runs once per backward, when the gradient of these rows is complete: a fused step.
            rows.register_post_accumulate_grad_hook(lambda r: self._step(items, r))
        return rows

    def optimizer_state(self) -> list[tuple[str, Tensor]]:
        if self._adamw is not None:
            return list(self._adamw.state[self.weight].items())
        sums = self._sum_squares if self._optimizer == "adagrad" else self._sum_squares.squeeze(1)
        return [("momentum1", sums)] if self._optimizer != "sgd" else []

    @property
    def is_dense(self) -> bool:
        """Whether each step changes all rows."""
        return self._adamw is not None

    def set_lr(self, lr: float) -> None:
        self._lr = lr
        if self._adamw is not None:
            self._adamw.param_groups[0]["lr"] = lr

    @torch.no_grad()
    def _step(self, items: Tensor, rows: Tensor) -> None:
        grad = rows.grad
        rows.grad = None
        assert grad is not None
        if self._adamw is not None:
            self.weight.grad = torch.zeros_like(self.weight).index_add_(0, items, grad)
            self._adamw.step()
            self.weight.grad = None
            return
        if self._optimizer != "sgd":
            squares = grad.square() if self._optimizer == "adagrad" else grad.square().mean(-1, keepdim=True)
            self._sum_squares.index_add_(0, items, squares)
            grad = grad / (self._sum_squares[items].sqrt() + ADAGRAD_EPS)
        # Not index_add_, which would add in the type of the rows; items are unique.
        self.weight[items] = (self.weight[items].float() - self._lr * grad).to(self.weight.dtype)
