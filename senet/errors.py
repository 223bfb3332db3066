"""The two ways in which a program ends because of something a person can mend, and how it says why it ends."""

import os
import socket
import sys
import time
import traceback


class UsageError(Exception):
    """A bad config, flag, path or file. One line: the thing, what is wrong, the remedy. Exit code 2."""


class RunError(Exception):
    """A run that cannot go on (too many undecodable images, say). One line or a list. Exit code 1."""


def explain(error: BaseException) -> int:
    """Print why the program ends, once for each error, and return its exit code: 2 usage, 130 interrupted, 1 otherwise.

    It is to be called before anything is closed: to close can mean to wait for other ranks, and a rank that waits does
    not say what it died of.
    """
    code = 2 if isinstance(error, UsageError) else 130 if isinstance(error, KeyboardInterrupt) else 1
    if "explained" in vars(error):
        return code
    vars(error)["explained"] = True
    rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    where = f" (rank {rank} on {socket.gethostname()})"
    if isinstance(error, UsageError):
        if rank != "0":  # mostly all ranks have the same to say: rank 0 says it, and torchrun ends the others meanwhile
            time.sleep(3)
        text = f"error{where * (rank != '0')}: {error}\n"
    elif isinstance(error, RunError):  # unlike a bad flag this can be one rank's alone (its images, its disk)
        text = f"error{where}: {error}\n"
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted\n"
    else:
        first = f"error{where}: {type(error).__name__}: {error}\n" if ranks != "1" else ""
        text = first + "".join(traceback.format_exception(error))
    sys.stderr.write(text)  # in one piece: other ranks write too
    sys.stderr.flush()
    return code
