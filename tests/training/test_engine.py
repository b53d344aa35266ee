from tests.support.ranks import run_ranks
from tests.training import ranks_worker as worker


def test_engines_load_no_compiled_op_and_leave_no_shared_memory() -> None:
    assert run_ranks(worker.shared_memory_of_an_engine, 2) == [[]] * 2
