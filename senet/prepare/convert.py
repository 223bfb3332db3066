"""From any form of a data set to shards or folders."""

from pathlib import Path
from typing import Any

from senet.data.storage.find import listing, splits
from senet.data.storage.index import Index
from senet.errors import UsageError
from senet.prepare.encoding import Encoding
from senet.prepare.folders import write_folders
from senet.prepare.plan import is_complete, record
from senet.prepare.shards import Packing, write_shards

Output = Packing | Encoding  # shards, or folders with images encoded like that


def convert(source: Path, to: Path, output: Output, processes: int | None = None) -> list[str]:
    """Write the images in `source`, whatever their form, as shards or folders to `to`; returns what was done, a
    sentence for each split. Raises UsageError as `write`.
    """
    if source.resolve() == to.resolve():
        raise UsageError(f"{to}: is what it is to be made of; name another folder")
    return [write(listing(source, split), to, split, output, {}, processes) for split in splits(source)]


def write(
    index: Index, to: Path, split: str, output: Output, facts: dict[str, Any], processes: int | None = None
) -> str:
    """Write the images of a split; returns what was done, in a sentence. `facts` say what they were made of.

    What is there is kept, and an interrupted call completed by the next. Raises UsageError if something else is there,
    for a full disk, for source images that cannot be read, and for two that would get the same name.
    """
    plan = plan_of(output, split) | facts | {"fingerprint": index.fingerprint}
    if is_complete(to, split, plan):
        return f"{to / split}: {len(index)} images are there already"
    try:
        record(to, split, plan)
        if isinstance(output, Packing):
            made = f"{write_shards(index, to, split, output, processes)} shards"
        else:
            made = f"{write_folders(index, to, split, output.of(split), processes)} classes"
        record(to, split, plan, complete=True)
    except OSError as error:
        raise UsageError(f"{to}: cannot be written: {error.strerror or error}") from None
    return f"{to / split}: {len(index)} images in {made}"


def plan_of(output: Output, split: str) -> dict[str, Any]:
    """Return what plan.json says of how a split is made."""
    if isinstance(output, Packing):
        packing = {"form": "shards", "shard_mb": output.shard_mb, "seed": output.seed}
        return packing | output.encoding.of(split).plan
    return {"form": "folders"} | output.of(split).plan
