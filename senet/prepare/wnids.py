"""Which of ImageNet's classes each validation image shows.

A label is the position of a class's wnid (n01440764) among the sorted wnids, as everywhere in PyTorch. The devkit
numbers the classes otherwise; its numbers are translated here by way of the wnids, and nowhere else met.
"""

import re
import tempfile
from pathlib import Path

from senet.data.imagenet import classes
from senet.errors import UsageError
from senet.prepare import archive

HERE = Path(__file__).parent
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
LARGEST_DEVKIT = 64 << 20  # bytes
VAL = "ILSVRC2012_val_{:08}"


def devkit_labels(devkit: Path) -> dict[str, str]:
    """Return the wnid of each validation image, by its name without ending, from the devkit, a .tar.gz or a folder.

    Raises UsageError.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = devkit
        if not devkit.is_dir():
            folder = Path(temporary)
            archive.extract(devkit, folder, LARGEST_DEVKIT, 2 * LARGEST_DEVKIT)
        file = next(iter(sorted(folder.rglob(GROUND_TRUTH))), None)
        if file is None:
            raise UsageError(f"{devkit}: no {GROUND_TRUTH} in it; give ILSVRC2012_devkit_t12.tar.gz, or its folder")
        lines = _lines(file)
    wnids = (HERE / "devkit_wnids.txt").read_text().split()  # in order of ILSVRC2012_ID
    if wrong := [line for line in lines if not (line.isdecimal() and 1 <= int(line) <= len(wnids))]:
        raise UsageError(f"{devkit}: {GROUND_TRUTH}: {wrong[0][:40]!r} is no class of 1 to {len(wnids)}")
    return {VAL.format(number): wnids[int(line) - 1] for number, line in enumerate(lines, 1)}


def listed_labels(file: Path, text: str | None = None) -> dict[str, str]:
    """Return the same from a list, by default what is in `file`: a wnid each in order of the images' names; FILENAME
    WNID; FILENAME NUMBER, as in Caffe's val.txt, whose numbers are positions in the sorted wnids; or Kaggle's
    LOC_val_solution.csv. Raises UsageError.
    """
    lines = _lines(file) if text is None else text.splitlines()
    found: dict[str, str] = {}
    known = list(classes())
    numbers: list[int] = []
    for line in (line for line in lines if not line.startswith("ImageId,")):
        *name, shown = line.replace(",", " ", 1).split()[: 2 if "," in line else None] or [""]
        if name and shown.isdecimal() and int(shown) <= len(known):
            numbers.append(int(shown))
            shown = known[min(int(shown), len(known) - 1)]
        if not re.fullmatch(r"n\d{8}", shown) or len(name) > 1:
            at = f"line {lines.index(line) + 1}: {line[:40]!r}"
            raise UsageError(f"{file}: {at} is neither a wnid, nor FILENAME WNID, nor FILENAME NUMBER (0 to 999)")
        found[Path(name[0]).stem if name else VAL.format(len(found) + 1)] = shown
    if len(known) in numbers:
        raise UsageError(f"{file}: its numbers go to 1000, as the devkit's, which are in another order; give --devkit")
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); give the file as published") from None
