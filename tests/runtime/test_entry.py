"""How commands end: one line for the user's mistakes, a traceback for ours."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pad_dist.errors import UserError
from pad_dist.runtime.entry import user_errors


def test_a_users_mistake_is_one_line_and_exit_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as end, user_errors():
        raise UserError("events.csv does not exist")
    assert end.value.code == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "pad-dist: error: events.csv does not exist\n")


@pytest.mark.parametrize(("rank", "waits", "where"), [("0", [], ""), ("3", [5], " (rank 3)")])
def test_the_first_rank_tells_before_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rank: str, waits: list[int], where: str
) -> None:
    waited: list[int] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("pad_dist.runtime.entry.time", SimpleNamespace(sleep=waited.append))
    with pytest.raises(SystemExit), user_errors():
        raise UserError("too large")
    assert waited == waits
    assert capsys.readouterr().err == f"pad-dist: error{where}: too large\n"


def test_our_own_bugs_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), user_errors():
        raise KeyError("bug")
    assert capsys.readouterr().err == ""


def test_nothing_is_said_where_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with user_errors():
        done = True
    assert done and capsys.readouterr().err == ""
