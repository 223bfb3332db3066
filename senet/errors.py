"""The two ways in which a program ends because of something a person can mend, and how it says why it ends."""

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import time
import traceback

# What is wrong with a path, or with the machine, and not with the program.
REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "give this user access, or name another path",
    errno.EPERM: "give this user access, or name another path",
    errno.EROFS: "name a path on a file system that can be written to",
    errno.ENOTDIR: "a file stands where a folder is needed: name another path",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another path, or move away what is there",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ENOSPC: "make room, or name a path on another disk",
    errno.EDQUOT: "make room, or ask for a larger quota",
    errno.ELOOP: "a link leads back to itself: mend it",
    errno.EMFILE: "allow more open files: ulimit -n",
    errno.ENFILE: "allow more open files on this machine: sysctl fs.file-max",
    errno.EIO: "the disk fails, or the server of the file system: see dmesg",
    errno.ESTALE: "mount the file system again",
    errno.ENODEV: "mount the file system again",
    errno.ENOTCONN: "mount the file system again",
    errno.ETIMEDOUT: "the server of the file system does not answer",
    errno.EHOSTDOWN: "the server of the file system does not answer",
    errno.EINVAL: "this file system does not allow the name: use another path",
    errno.EFBIG: "this file system allows no file of that size: use another path",
}


class UsageError(Exception):
    """A bad config, flag, path or file. One line: the thing, what is wrong, the remedy. Exit code 2."""


class RunError(Exception):
    """A run that cannot go on (too many undecodable images, say). One line or a list. Exit code 1."""


class DiskError(RunError):
    """A run that cannot go on for its disk's sake. Another start may."""


def explain(error: BaseException) -> int:
    """Print why the program ends, once for each error, and return its exit code: 2 usage, 130 interrupted, 1 otherwise.

    It is to be called before anything is closed: to close can mean to wait for other ranks, and a rank that waits does
    not say what it died of.
    """
    path = isinstance(error, OSError) and error.filename is not None and error.errno in REMEDIES
    code = 2 if isinstance(error, UsageError) or path else 130 if isinstance(error, KeyboardInterrupt) else 1
    if "explained" in vars(error):
        return code
    vars(error)["explained"] = True
    rank, ranks = os.environ.get("RANK") or "0", os.environ.get("WORLD_SIZE") or "1"
    where = f" (rank {rank} on {socket.gethostname()})"
    if (code == 2 or isinstance(error, DiskError)) and rank != "0":
        # Mostly all ranks have the same to say: rank 0 says it, and torchrun ends the others meanwhile.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(3)
    if code == 2:
        text = f"error{where * (rank != '0')}: {_plain(error)}\n"
    elif isinstance(error, RunError):  # unlike a bad flag this can be one rank's alone (its images, its disk)
        text = f"error{where}: {error}\n"
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted\n"
    else:
        first = f"error{where}: {type(error).__name__}: {error}\n" if ranks != "1" else ""
        text = first + "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):  # a file on a full disk
        sys.stderr.write(text)  # in one piece: other ranks write too
        sys.stderr.flush()
    _tell_torchrun(text)
    return code


def _plain(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{os.fsdecode(error.filename)}: {error.strerror}; {REMEDIES.get(error.errno or 0, 'check the path')}"
    return str(error)


def _tell_torchrun(text: str) -> None:
    """Let torchrun end its own report with the reason, instead of a hint on how to get tracebacks."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = {"message": text.strip(), "extraInfo": {"timestamp": str(int(time.time()))}}
        try:
            with open(file, "w") as target:
                json.dump({"message": message}, target)
        except OSError:
            return  # its report is without the reason, which was printed above
