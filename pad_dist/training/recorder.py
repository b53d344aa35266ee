"""What rank 0 tells while training: console lines, JSON lines and TensorBoard."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter


class Recorder:
    """Progress of one stage; silent on every rank but the first."""

    def __init__(self, stage: str, directory: str, *, speaks: bool, start_step: int | None = None) -> None:
        self._stage = stage
        self._speaks = speaks
        self._clock = time.monotonic()
        self._sequences = self._skipped = 0
        if speaks:
            folder = Path(directory)
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / "metrics.jsonl"
            kept = []
            if start_step is None:
                # A stage starts from its first epoch: what an earlier one left is not part of it.
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
            elif file.exists():
                # What came after the checkpoint comes again.
                kept = [line for line in _whole_lines(file) if json.loads(line)["step"] <= start_step]
            self._lines = file.open("w")
            self._lines.writelines(kept)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step and start_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._speaks:
            self._lines.close()
            self._board.close()

    def say(self, text: str) -> None:
        """One console line."""
        if self._speaks:
            print(f"[{self._stage}] {text}", flush=True)

    def start_clock(self, skipped: int = 0) -> None:
        """Begin a stretch of training whose speed is reported; the first `skipped` steps of its epoch are not in it."""
        self._clock, self._sequences, self._skipped = time.monotonic(), 0, skipped

    def count(self, sequences: int) -> None:
        """Sequences trained since `start_clock`, over all ranks."""
        self._sequences += sequences

    def training(
        self, *, epoch: int, step: int, place: int, steps: int, loss: float, counters: Mapping[str, int]
    ) -> None:
        """Report a training step, `place` of `steps` in its epoch; the ETA is that of the epoch's end.

        `counters` are written to the files only.
        """
        seconds = max(time.monotonic() - self._clock, 1e-9)
        speed = self._sequences / seconds
        eta = seconds / (place - self._skipped) * (steps - place)
        self.say(f"epoch {epoch} step {place}/{steps} loss {loss:.4f} {speed:,.0f} sequences/s eta {eta:.0f} s")
        self._write("train", step, epoch, {"loss": loss, "sequences_per_s": speed, **counters})

    def skipped(self, *, epoch: int, step: int, place: int, skipped: int) -> None:
        """Report a training step that changed nothing, one of `skipped` in all."""
        self.say(f"epoch {epoch} step {place} skipped, its loss is not finite: {skipped} skipped in all")
        self._write("skipped", step, epoch, {"skipped": skipped})

    def validation(self, *, epoch: int, step: int, metrics: dict[str, Any], best: bool) -> None:
        """Report a validation."""
        values = {"hr@10": metrics["hr@10"], "ndcg@10": metrics["ndcg@10"], "cold_hr@10": metrics["cold"]["hr@10"]}
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.say(f"epoch {epoch} validation  {text}{'  best so far' if best else ''}")
        self._write("valid", step, epoch, values)

    def _write(self, kind: str, step: int, epoch: int, values: dict[str, float]) -> None:
        if self._speaks:
            self._lines.write(
                json.dumps({"kind": kind, "step": step, "epoch": epoch, "time": time.time(), **values}) + "\n"
            )
            self._lines.flush()
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)


def _whole_lines(file: Path) -> list[str]:
    """Lines of a file whose last one a killed process may have left half-written."""
    return [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
