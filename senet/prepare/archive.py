"""Archives from outside: is it the right one, what is in it, and unpack it without trusting it."""

import re
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from senet.errors import UsageError
from senet.system.files import digest


class Member(NamedTuple):
    """A file in an uncompressed tar, and where its bytes are in there."""

    name: str  # without folders
    start: int
    size: int


def identify(path: Path, known: Mapping[str, str]) -> str:
    """Return the name of the archive at `path`, given the MD5 sum of each.

    Raises UsageError if it is none of them. The sums that publishers give are MD5: they find damage and mix-ups, not
    forgery, which is why `extract` trusts nothing.
    """
    try:
        own = digest(path, "md5")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    for name, md5 in known.items():
        if own == md5:
            return name
    expected = " or ".join(f"{name} ({md5})" for name, md5 in known.items())
    raise UsageError(f"{path}: MD5 {own} is not that of {expected}; fetch it again, or pass --no-checksum")


def members(path: Path, start: int, size: int, pattern: str, largest: int) -> list[Member]:
    """List the files in the uncompressed tar that lies at `start` of the file `path` and has `size` bytes.

    Raises UsageError for names that do not match `pattern` or come twice, for files of more than `largest` bytes or
    none, for what `checked` refuses, and for a damaged archive.
    """
    found: dict[str, Member] = {}
    try:
        with path.open("rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    name = checked(path, member).name
                    if member.isdir():
                        continue
                    if not re.fullmatch(pattern, name):
                        raise UsageError(
                            f"{path}: {member.name!r} does not belong there (expected {pattern}); "
                            "name the tar as published"
                        )
                    if not 0 < member.size <= largest or member.issparse():
                        raise UsageError(
                            f"{path}: refused: {member.name!r} has {member.size} bytes, not 1 to {largest}"
                        )
                    if name in found:
                        raise UsageError(f"{path}: holds {name!r} twice; fetch it again")
                    found[name] = Member(name, member.offset_data, member.size)
                    if member.offset_data + member.size > start + size:
                        raise tarfile.ReadError(f"{name!r} ends early")
                # tarfile takes a damaged header for the end.
                file.seek(archive.offset)
                if archive.offset < start + size and any(file.read(tarfile.BLOCKSIZE)):
                    raise tarfile.ReadError(f"damaged at byte {archive.offset}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"{path}: not a tar archive, or a damaged one ({error}); fetch it again") from None
    return list(found.values())


def extract(path: Path, into: Path, largest_member: int, largest_total: int) -> None:
    """Unpack a tar archive, compressed or not, into the folder `into`.

    Sizes are in bytes. Only plain files and folders inside `into` are accepted; owners and permissions are not taken
    over. Raises UsageError for anything else, for a file over `largest_member`, for more than `largest_total`
    altogether, for a name that comes twice, and for a damaged archive. What was written until then stays in `into`:
    give a folder that can be thrown away.
    """
    total = 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                target = into / checked(path, member)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                if member.size > largest_member:
                    raise UsageError(
                        f"{path}: {member.name!r} has {member.size} bytes, more than the {largest_member} that are "
                        "sensible"
                    )
                if (total := total + member.size) > largest_total:
                    raise UsageError(f"{path}: unpacks to more than the {largest_total} bytes that are sensible")
                target.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None  # of a regular file
                with content, target.open("xb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                if target.stat().st_size != member.size:
                    raise tarfile.ReadError(f"{member.name!r} ends early")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not a tar archive, or a damaged one ({error}); fetch it again") from None
    except FileExistsError as error:
        raise UsageError(f"{path}: holds {Path(str(error.filename)).name!r} twice; fetch it again") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be unpacked into {into}: {error.strerror or error}") from None


def checked(path: Path, member: tarfile.TarInfo) -> PurePosixPath:
    """Return the name of a member of the archive at `path`. Raises UsageError for one that may not be unpacked."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UsageError(f"{path}: refused: {member.name!r} would be written outside the folder")
    if not (member.isreg() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "neither a file nor a folder"
        raise UsageError(f"{path}: refused: {member.name!r} is {kind}")
    return name
