"""How every command begins and ends: errors of the user's are one line and exit status 2."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pad_dist.errors import UserError

USER_ERROR_STATUS = 2


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a UserError into one line on stderr and exit status 2.

    Of several ranks the one that knows what is wrong tells; the launcher ends the others while they wait.
    """
    try:
        yield
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            # Most errors reach every rank: the first one tells.
            time.sleep(5)
        where = "" if rank == "0" else f" (rank {rank})"
        print(f"pad-dist: error{where}: {error}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR_STATUS)
    except RuntimeError:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            # So fails a collective when another rank has ended: that one has the reason.
            time.sleep(10)
        raise
