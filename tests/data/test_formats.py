"""Image sets as others keep them give the images and labels of the folders they were made of."""

from __future__ import annotations

import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from senet.data.storage.find import find, listing, saved_listing
from senet.data.storage.index import Index, index_file
from senet.errors import UsageError
from senet.prepare.convert import convert
from senet.prepare.shards import Packing
from tests.data.test_index import add


def rows(root: Path, split: str) -> Iterator[tuple[Path, int]]:
    """The images of a set of folders with their labels, mixed."""
    files = sorted((root / split).glob("*/*"))
    for number in np.random.default_rng(0).permutation(len(files)):
        yield files[number], int(files[number].parent.name.removeprefix("class"))


def contents(index: Index) -> list[tuple[int, bytes]]:
    return [(int(label), index.storage.read(image)) for image, label in enumerate(index.labels)]


def same(made: Path, folders: Path, tmp_path: Path) -> None:
    """Check a set of another form against the folders: as it is, from its saved list, and as shards made of it."""
    for split in ("train", "val"):
        index, expected = listing(made, split), listing(folders, split)
        assert sorted(contents(index)) == sorted(contents(expected))
        assert (np.diff(index.labels) >= 0).all()
        assert len(set(index.storage.names)) == len(index)
        assert find(made, split, 3).fingerprint == index.fingerprint
        index.save(index_file(made, split))
        saved = saved_listing(made, split)
        assert saved is not None
        assert contents(saved) == contents(index)
        assert saved.classes == index.classes
        assert str(made) in index.storage.path(3)
        assert index.storage.file(3).is_file()
        size = sum(len(content) for _, content in contents(index))
        assert index.storage.sizes().sum() == pytest.approx(size, rel=0.3)  # of Parquet only means are known
    convert(made, tmp_path / "shards", Packing(shard_mb=1), processes=1)
    for split in ("train", "val"):
        assert contents(listing(tmp_path / "shards", split)) == contents(listing(made, split))


@pytest.mark.parametrize(
    ("picture", "ending", "told"),
    [
        ("jpg", "json", lambda label: json.dumps({"width": 9, "label": label})),
        ("JPEG", "json", lambda label: json.dumps({"id": 7, "class_id": str(label)})),
        ("jpeg", "json", lambda label: json.dumps({"label": f"class{label}"})),
        ("webp", "cls", lambda label: f"class{label}\n"),
        ("img.jpg", "cls.txt", lambda label: f" {label}\n"),
        ("image.png", "cls.json", json.dumps),
    ],
)
def test_shards_of_others_in_one_folder(
    images: Path, tmp_path: Path, picture: str, ending: str, told: Callable[[int], str]
) -> None:
    """As img2dataset's, timm's and other sets: names begin anew in each tar, and more stands in them."""
    made = tmp_path / "made"
    made.mkdir()
    for split, called in (("train", "train"), ("val", "validation")):
        listed = list(rows(images, split))
        for shard in range(3):
            with tarfile.open(made / f"set-{called}-{shard:04}.tar", "w") as archive:
                for number, (file, label) in enumerate(listed[shard::3]):
                    add(archive, f"{number:06}.{picture}", file.read_bytes())
                    add(archive, f"{number:06}.{ending}", told(label).encode())
                    add(archive, f"{number:06}.txt", b"a caption")
                    add(archive, f"._{number:06}.{picture}", b"what macOS adds")
    for name in ("train-extras.tar", "interval.tar"):  # no shards: one has no labels, and one no split
        with tarfile.open(made / name, "w") as archive:
            add(archive, "picture.jpg", b"")
    same(made, images, tmp_path)
    assert listing(made, "train").classes == (("class0", "class1", "class2") if "class1" in told(1) else ())


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features: bytes | int) -> bytes:
    """A tf.train.Example; integers packed as TensorFlow writes them, and last in the map."""
    entries = b""
    for name, value in features.items():
        one = field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, varint(value)))
        entries += field(1, field(1, name.replace("__", "/").encode()) + field(2, one))
    return field(1, entries)


@pytest.mark.parametrize("kind", ["slim", "synset", "tfds"])
def test_tfrecords(images: Path, tmp_path: Path, kind: str) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for split, called in (("train", "train"), ("val", "validation")):
        for shard in range(2):
            name = f"{called}-{shard:05}-of-00002" if kind != "tfds" else f"set-{called}.tfrecord-{shard:05}-of-00002"
            with (made / name).open("wb") as stream:
                for file, label in list(rows(images, split))[shard::2]:
                    content, own, synset = file.read_bytes(), file.name.encode(), b"class%d" % label
                    record = {
                        "slim": {"image__encoded": content, "image__filename": own, "image__class__label": label + 1},
                        "synset": {"image__class__synset": synset, "image__encoded": content},
                        "tfds": {"file_name": own, "image": content, "label": label},
                    }[kind]
                    record = example(**record)
                    stream.write(struct.pack("<QI", len(record), 0) + record + b"\0" * 4)
    same(made, images, tmp_path)
    whole = (made / name).read_bytes()
    for content, reason in (
        (whole[:-9], "ends early"),
        (b"\x1f\x8b" + whole[2:], "gzip -d"),
        (b"\1" * 99, "not a readable"),
    ):
        (made / name).write_bytes(content)
        with pytest.raises(UsageError, match=reason):
            listing(made, "val")


@pytest.mark.parametrize(
    ("image", "label", "folder", "val"),
    [
        ("image", "label", "data", "validation"),  # imagenet-1k
        ("img", "fine_label", "cifar100", "test"),  # cifar100
        ("pixels", "target", "default/partial", "val"),  # plain bytes, and names as labels
    ],
)
def test_parquet_of_hugging_face(images: Path, tmp_path: Path, image: str, label: str, folder: str, val: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    made, plain = tmp_path / "made", image == "pixels"
    (made / folder).mkdir(parents=True)
    facts = {"info": {"features": {label: {"names": ["zero", "one", "two"], "_type": "ClassLabel"}}}}

    def write(name: str, part: list[tuple[Path, int]], **more: list[Any]) -> Path:
        structs = [{"bytes": f.read_bytes(), "path": f.name if image == "image" else None} for f, _ in part]
        columns = {"text": ["a caption"] * len(part), image: [s["bytes"] for s in structs] if plain else structs}
        columns[label] = [f"class{n}" if plain else n for _, n in part]
        table = pyarrow.table(columns | more)
        if not plain:
            table = table.replace_schema_metadata({"huggingface": json.dumps(facts)})
        parquet.write_table(table, made / folder / f"{name}.parquet", row_group_size=10)
        return made / folder / f"{name}.parquet"

    for split, called in (("train", "train"), ("val", val)):
        for shard in range(2):
            write(f"{called}-{shard:05}-of-00002", list(rows(images, split))[shard::2])
    same(made, images, tmp_path)
    assert listing(made, "train").classes == (("class0", "class1", "class2") if plain else ("zero", "one", "two"))
    part = list(rows(images, "train"))[:3]
    lacking = write("train-00000-of-00002", part, **{label: [1, None, 2]})
    with pytest.raises(UsageError, match=f"row 1 of row group 0 has None for {label}"):
        listing(made, "train")
    write("train-00000-of-00002", part, **{image: ["a/path"] * 3})
    with pytest.raises(UsageError, match="expected one of bytes, as image, and one of labels"):
        listing(made, "train")
    lacking.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="cannot be read"):
        listing(made, "train")


def test_kaggles_download(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tmp_path / "made/ILSVRC/Data/CLS-LOC"
    (base / "val").mkdir(parents=True)
    (base / "train").symlink_to(images / "train")
    (base / "test").mkdir()
    lines = ["ImageId,PredictionString\n"]
    for number, (file, label) in enumerate(rows(images, "val")):
        (base / f"val/ILSVRC2012_val_{number:08}.JPEG").write_bytes(file.read_bytes())
        lines.append(f"ILSVRC2012_val_{number:08},class{label} 111 108 230 366 class{label} 1 2 3 4 \n")
    (tmp_path / "made/LOC_val_solution.csv").write_text("".join(lines))
    (tmp_path / "made/LOC_synset_mapping.txt").write_text("class0 a thing\n")
    same(tmp_path / "made", images, tmp_path)
    assert "has no train/; ILSVRC/Data/CLS-LOC/train/ is used for it" in caplog.text
    assert listing(tmp_path / "made", "val").classes == ("class0", "class1", "class2")
    assert len(listing(tmp_path / "made/ILSVRC", "val")) == 203
    (tmp_path / "made/LOC_val_solution.csv").rename(tmp_path / "list")
    with pytest.raises(UsageError, match=r"CLS-LOC/val: its images lie side by side, without labels; put LOC_val_sol"):
        listing(tmp_path / "made", "val")
    (tmp_path / "list").rename(tmp_path / "made/LOC_val_solution.csv")
    (base / "val/more.JPEG").write_bytes(b"")
    with pytest.raises(UsageError, match=r"'more' is not in .*LOC_val_solution\.csv"):
        listing(tmp_path / "made", "val")


def test_the_layout_of_tiny_imagenet(images: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / "val/images").mkdir(parents=True)
    lines = []
    for number, (file, label) in enumerate(rows(images, "val")):
        (made / f"val/images/val_{number}.JPEG").write_bytes(file.read_bytes())
        lines.append(f"val_{number}.JPEG\tclass{label}\t0\t32\t44\t62\n")
    (made / "val/val_annotations.txt").write_text("".join(lines))
    for file, label in rows(images, "train"):
        (made / f"train/class{label}/images").mkdir(parents=True, exist_ok=True)
        (made / f"train/class{label}/images/{file.name}").write_bytes(file.read_bytes())
        (made / f"train/class{label}/class{label}_boxes.txt").write_text("")
    same(made, images, tmp_path)
    (made / "val/val_annotations.txt").write_text("".join(sorted(lines)[1:]))
    with pytest.raises(UsageError, match=r"is not in .*val_annotations\.txt"):
        listing(made, "val")
