"""Archives from outside: is it the right one, and unpack it without trusting it."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from senet.errors import UsageError


def md5(path: Path) -> str:
    """The MD5 sum of a file, in hex. Raises UsageError where it cannot be read."""
    # The sums that publishers give are MD5: they find damage and mix-ups, not forgery, which is why `extract` trusts
    # nothing.
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def identify(path: Path, known: Mapping[str, str]) -> str:
    """The name of the archive at `path`, given the MD5 sum of each name. Raises UsageError if it is none of them."""
    found = md5(path)
    for name, expected in known.items():
        if found == expected:
            return name
    expected = " or ".join(f"{name} ({value})" for name, value in known.items())
    raise UsageError(
        f"{path}: MD5 {found} is not that of {expected}; fetch it again, or pass --no-checksum if it is meant to differ"
    )


def extract(path: Path, into: Path, largest_member: int, largest_total: int) -> int:
    """Unpack a tar archive, compressed or not, into the folder `into` and return the number of its files.

    Sizes are in bytes. Only plain files and folders inside `into` are accepted; owners and permissions are not taken
    over. Raises UsageError for anything else, for a file over `largest_member`, for more than `largest_total`
    altogether, for a name that comes twice, and for a damaged archive. What was written until then stays in `into`:
    give a folder that can be thrown away.
    """
    files = total = 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = checked(path, member)
                if member.isdir():
                    (into / name).mkdir(parents=True, exist_ok=True)
                    continue
                files, total = files + 1, total + member.size
                if member.size > largest_member:
                    raise UsageError(
                        f"{path}: {member.name!r} has {member.size} bytes, more than the "
                        f"{largest_member} that are sensible"
                    )
                if total > largest_total:
                    raise UsageError(f"{path}: unpacks to more than the {largest_total} bytes that are sensible")
                _write(archive, member, into / name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not a tar archive, or a damaged one ({error}); fetch it again") from None
    except FileExistsError as error:
        raise UsageError(f"{path}: holds {Path(str(error.filename)).name!r} twice; fetch it again") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be unpacked into {into}: {error.strerror or error}") from None
    return files


def checked(path: Path, member: tarfile.TarInfo) -> PurePosixPath:
    """The name of a member of the archive at `path` that may be unpacked. Raises UsageError for one that may not."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UsageError(f"{path}: refused: {member.name!r} would be written outside the folder")
    if not (member.isreg() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "neither a file nor a folder"
        raise UsageError(f"{path}: refused: {member.name!r} is {kind}")
    return name


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None  # of a regular file
    with content, target.open("xb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    if target.stat().st_size != member.size:
        raise tarfile.ReadError(f"{member.name!r} ends early")
