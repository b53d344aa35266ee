from tests.distributed import context_worker as worker
from tests.support.ranks import run_ranks


def test_engines_load_no_compiled_op_and_leave_no_shared_memory() -> None:
    assert run_ranks(worker.shared_memory_of_an_engine, 2) == [[]] * 2
