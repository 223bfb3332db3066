"""An audit's findings on a page."""

from pathlib import Path
from typing import Any

from senet.system import table

SHOWN = 5  # names, at most, of each sort of finding
REMARKS = {
    "cmyk": "CMYK, used as RGB",
    "sixteen_bit": "16 bits, used as 8",
    "exif_rotated": "turned by EXIF, used as stored",
    "tiny": "shorter side below 32 pixels, used",
    "misnamed": "another format than the name says, used",
    "decoded_differently": "PIL and DALI differ by more than 3 of 255 levels, used",
    "duplicates": "files that are the same, used each",
    "hidden": "hidden, not used",
    "not_images": "no image by the name, not used",
}


def page(root: Path, result: dict[str, Any]) -> str:
    """Return the text of audit.txt."""
    splits: dict[str, dict[str, Any]] = result["splits"]
    images = sum(found["images"] for found in splits.values())
    with_dali = f" and DALI {result['decoders']['dali']} (CPU)" if result["decoders"]["dali"] else ""
    lines = [
        f"Audit of {root}, {result['made']}",
        f"{images:,} images read and decoded by PIL {result['decoders']['pil']}{with_dali} "
        f"in {result['seconds']:.0f} s, {images / max(result['seconds'], 0.1):,.0f} a second",
        "",
        _table(splits),
        "",
        _classes(result["class_list"]),
    ]
    for key, remark in REMARKS.items():
        for split, found in splits.items():
            lines += _some(f"{split}: {remark}", found[key]["count"], [_one(name) for name in found[key]["names"]])
    if result["duplicates_in_both_splits"] or result["duplicates_of_two_classes"]:
        both, classes = result["duplicates_in_both_splits"], result["duplicates_of_two_classes"]
        lines += ["", f"Of the same files {both:,} are in train and val, {classes:,} in several classes."]
    for split, found in splits.items():
        bad = found["undecodable"]
        lines += _some(f"{split}: undecodable", len(bad), [f"{name}: {bad[name]['reason']}" for name in bad])
    return "\n".join([*lines, "", *_advice(root, splits)]) + "\n"


def _table(splits: dict[str, dict[str, Any]]) -> str:
    rows: list[list[str]] = []
    for what, cell in {
        "images": lambda of: f"{of['images']:,}",
        "classes": lambda of: f"{len(of['classes']):,}",
        "images in a class": lambda of: f"{min(of['classes'].values()):,} to {max(of['classes'].values()):,}",
        "formats": lambda of: ", ".join(f"{kind} {n:,}" for kind, n in of["formats"].items()),
        "width: min, median, max": lambda of: ", ".join(map(str, of["sizes"].get("width", ["-"]))),
        "height: min, median, max": lambda of: ", ".join(map(str, of["sizes"].get("height", ["-"]))),
        "largest, megapixels": lambda of: str(of["sizes"].get("megapixels_max", "-")),
        "grey, palette, alpha": lambda of: f"{of['grey']:,}, {of['palette']:,}, {of['alpha']:,}",
        "undecodable": lambda of: f"{len(of['undecodable']):,}",
        "- empty, truncated": lambda of: f"{of['empty']['count']:,}, {of['truncated']['count']:,}",
    }.items():
        rows.append([what, *map(cell, splits.values())])
    for side in next(iter(splits.values()))["sizes"].get("shorter_side", ()):
        counts = [of["sizes"].get("shorter_side", {}).get(side, 0) for of in splits.values()]
        if any(counts):
            rows.append([f"shorter side {side}", *(f"{count:,}" for count in counts)])
    return table.text(["", *splits], rows)


def _classes(listed: dict[str, Any]) -> str:
    if listed["sha256"] is None:
        return f"{listed['count']:,} classes without names (no classes.txt)"
    kind = "ImageNet's" if listed["is_imagenet"] else "not ImageNet's 1000"
    return f"{listed['count']:,} classes, {kind}; SHA-256 of their names {listed['sha256'][:16]}"


def _one(name: str | list[str]) -> str:
    return name if isinstance(name, str) else " = ".join(name[:SHOWN]) + (" = ..." if len(name) > SHOWN else "")


def _some(what: str, count: int, names: list[str]) -> list[str]:
    if not count:
        return []
    return ["", f"{what}: {count:,}", *(f"  {name}" for name in names[:SHOWN]), *(["  ..."] if count > SHOWN else [])]


def _advice(root: Path, splits: dict[str, dict[str, Any]]) -> list[str]:
    counts = {split: len(found["undecodable"]) for split, found in splits.items()}
    if not sum(counts.values()):
        return ["Nothing to do: every image can be decoded."]
    left_out = " and ".join(f"{n:,} image{'s' * (n > 1)} of {split}" for split, n in counts.items() if n)
    return [
        f"Training will leave out {left_out} by name ({root}/audit.json lists all).",
        "To use them, replace these files by good ones: those count at once. Audit again after other changes.",
    ]
