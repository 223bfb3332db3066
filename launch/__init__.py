"""What a person types. Exit codes: 0 done, 2 usage or config, 75 stopped early but resumable, 1 anything else."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from senet.errors import explain


def guard(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its code; if it fails, say why: in one line, if a person can mend it."""
    try:
        code = main()
    except SystemExit:
        raise
    except BaseException as error:
        code = explain(error)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            # At once: Python's own end would take the group of processes apart, and NCCL waits for the peers to do so
            # too, which are busy or dead.
            sys.stdout.flush()
            os._exit(code)
    sys.stdout.flush()
    sys.exit(code)
