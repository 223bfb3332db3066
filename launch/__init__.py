"""What a person types. Exit codes: 0 done, 2 usage or config, 75 stopped early but resumable, 1 anything else."""

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from senet.errors import RunError, UsageError


def guard(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its code; what a person can mend becomes one line instead of a traceback, once for all
    ranks.
    """
    rank = os.environ.get("RANK", "0")
    try:
        code = main()
    except UsageError as error:
        code = 2
        if rank == "0":
            print(f"error: {error}", file=sys.stderr)
        else:
            # Mostly all ranks have the same to say: rank 0 says it, and torchrun ends the others while they wait.
            time.sleep(3)
            print(f"error (rank {rank} on {socket.gethostname()}): {error}", file=sys.stderr)
    except RunError as error:
        # Unlike a bad flag this can be one rank's alone (its images, its disk).
        code = 1
        print(f"error (rank {rank} on {socket.gethostname()}): {error}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        print("interrupted", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)
