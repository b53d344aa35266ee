from tests.support.ranks import run_ranks
from tests.training import ranks_worker as worker


def test_all_ranks_take_what_the_first_one_finds() -> None:
    assert run_ranks(worker.found_by_the_first, 2) == ["version of rank 0"] * 2
