"""The methods that a run can train, and the keys that a method sets whatever its config says."""

from __future__ import annotations

from typing import Any, Literal

MethodName = Literal["id", "text", "whitenrec", "llm_init", "clip", "ctrl", "rlmrec_con", "rlmrec_gen", "pad"]

PRESETS: dict[str, dict[str, Any]] = {
    "whitenrec": {"text.transform": "whiten", "text.whitening": 1.0},
    "clip": {"align.alignment.kind": "infonce"},
    # The alignment is the whole loss of CTRL's first stage.
    "ctrl": {"align.alignment.kind": "fine_grained", "align.anchor": False, "align.gamma": 1.0},
}
"""{method: {key: value}}."""
