"""What a person types. Exit codes: 0 done, 2 usage or config, 75 stopped early but resumable, 1 anything else."""

import os
import pwd
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from senet.errors import UsageError, explain
from senet.system.processes import allow_open_files


def guard(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its code; if it fails, say why: in one line, if a person can mend it."""
    try:
        _check_environment()
        _give_home()
        allow_open_files()
        code = main()
        sys.stdout.flush()
    except SystemExit:
        raise
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except BaseException as error:
        code = explain(error)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            # At once: Python's own end would take the group of processes apart, and NCCL waits for the peers to do so
            # too, which are busy or dead.
            sys.stdout.flush()
            os._exit(code)
    sys.exit(code)


def _give_home() -> None:
    """Give a user without a home, as containers have them, a folder for caches: torch, timm and wandb count on it."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", str(os.getuid()))
        if "HOME" not in os.environ:
            home = Path(tempfile.gettempdir()) / f"senet-{os.getuid()}"
            home.mkdir(mode=0o700, exist_ok=True)
            os.environ["HOME"] = str(home if home.stat().st_uid == os.getuid() else tempfile.mkdtemp())


def _check_environment() -> None:
    """Refuse what another launcher has left in the environment. Raises UsageError."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    given = {name: os.environ[name] for name in names if name in os.environ}
    odd = [f"{name}={value!r}" for name, value in given.items() if name != "MASTER_ADDR" and not value.isdigit()]
    if not odd and int(given.get("WORLD_SIZE", 1)) > 1:
        odd = [f"WORLD_SIZE={given['WORLD_SIZE']} without {name}" for name in names if name not in given]
    if odd:
        raise UsageError(f"{odd[0]} in the environment: unset {' '.join(names)}, or start the ranks with torchrun")
