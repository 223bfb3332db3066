"""An audit finds one of each defect, in folders and in shards, and training leaves out what cannot be decoded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from senet.config import Folder
from senet.data.source import Source, train_loader
from senet.data.storage.find import find, saved_listing
from senet.errors import UsageError
from senet.prepare import findings
from senet.prepare.audit import audit
from tests.data.test_index import pack
from tests.helpers import ROOT, command, environment, run

BAD = {
    "class0/cut.JPEG": "truncated",
    "class0/empty.JPEG": "an empty file",
    "class1/text.JPEG": "begins with b'a text'",
}
BAD |= {"class1/gif.JPEG": "begins with b'GIF8", "class2/body.png": "PIL cannot decode it: .*; DALI cannot decode it"}
TRAITS = {
    "cmyk": ["class0/cmyk.JPEG"],
    "sixteen_bit": ["class0/deep.png"],
    "exif_rotated": ["class1/turned.JPEG"],
    "tiny": ["class2/tiny.JPEG"],
    "misnamed": ["class1/misnamed.JPEG"],
    "decoded_differently": [],
    "truncated": ["class0/cut.JPEG", "class2/body.png"],
    "empty": ["class0/empty.JPEG"],
}


@pytest.fixture
def odd(few_images: Path) -> Path:
    """27 + 9 good images; in the training set one of each defect besides, and a copy of an image of the
    validation set.
    """
    train = few_images / "train"
    picture = Image.open(train / "class0/000.JPEG").convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.convert("CMYK").save(train / "class0/cmyk.JPEG")
    picture.convert("L").save(train / "class0/grey.JPEG")
    Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)).save(train / "class0/deep.png")
    picture.save(train / "class1/turned.JPEG", exif=turned)
    upright = Image.Exif()
    upright[0x0112] = 0  # which some cameras write: not turned
    picture.save(train / "class1/upright.JPEG", exif=upright)
    picture.save(train / "class1/misnamed.JPEG", format="PNG")
    picture.quantize(256).save(train / "class1/palette.png")
    picture.convert("RGBA").save(train / "class2/alpha.png")
    picture.crop((0, 0, 40, 3)).save(train / "class2/tiny.JPEG")
    content = (train / "class0/000.JPEG").read_bytes()
    (train / "class0/cut.JPEG").write_bytes(content[: len(content) // 2])
    (train / "class0/empty.JPEG").write_bytes(b"")
    (train / "class1/text.JPEG").write_bytes(b"a text")
    picture.quantize(256).save(train / "class1/gif.JPEG", format="GIF")
    picture.save(train / "class2/body.png")
    (train / "class2/body.png").write_bytes((train / "class2/body.png").read_bytes()[:4000])
    (train / "class2/copy.JPEG").write_bytes((few_images / "val/class1/001.JPEG").read_bytes())
    return few_images


def audited(root: Path) -> dict[str, Any]:
    assert audit(root, 1) == 0
    result = json.loads((root / "audit.json").read_text())
    assert result["format"] == 2
    return dict(result)


def test_one_of_each_defect_in_folders(odd: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (odd / "train/.hidden").mkdir()
    (odd / "train/class1/.DS_Store").write_bytes(b"")
    (odd / "train/class1/notes.txt").write_bytes(b"")
    (odd / "train/wnids.txt").write_bytes(b"")
    (odd / "train/class1/circle").symlink_to("..")
    (odd / "train/class2/link.JPEG").symlink_to("nowhere")  # whoever runs the tests may read all files
    (odd / "audit.json").write_text("of no account")
    result = audited(odd)
    train, val = result["splits"]["train"], result["splits"]["val"]

    assert (train["images"], val["images"]) == (43, 9)
    assert train["classes"] == {"class0": 14, "class1": 15, "class2": 14}
    assert train["formats"] == {"unknown": 2, "empty": 1, "jpeg": 34, "png": 5, "gif": 1}
    for trait, names in TRAITS.items():
        assert train[trait] == {"count": len(names), "names": [f"train/{name}" for name in names]}, trait
        assert val[trait] == {"count": 0, "names": []}
    assert (train["grey"], train["palette"], train["alpha"]) == (2, 1, 1)
    assert train["hidden"]["names"] == ["train/.hidden", "train/class1/.DS_Store"]
    assert train["not_images"]["names"] == ["train/class1/circle", "train/class1/notes.txt", "train/wnids.txt"]
    assert (
        train["duplicates"]
        == val["duplicates"]
        == {"count": 1, "names": [["train/class2/copy.JPEG", "val/class1/001.JPEG"]]}
    )
    assert (result["duplicates_in_both_splits"], result["duplicates_of_two_classes"]) == (1, 1)

    bad = train["undecodable"]
    assert set(bad) == {f"train/{name}" for name in (*BAD, "class2/link.JPEG")}
    for name, pattern in (BAD | {"class2/link.JPEG": "cannot be read: No such file"}).items():
        entry, file = bad[f"train/{name}"], odd / "train" / name
        assert re.search(pattern, entry["reason"])
        state = (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else (0, 0)
        assert (entry["file"], entry["bytes"], entry["modified_ns"]) == (f"train/{name}", *state)
    assert result["class_list"]["count"] == 3
    assert not result["class_list"]["is_imagenet"]

    out, err = capfd.readouterr()
    assert out == (odd / "audit.txt").read_text()
    assert "Training will leave out 6 images of train by name" in out
    assert not err
    saved = saved_listing(odd, "train")
    assert saved is not None
    assert len(saved) == 43
    assert [name for name in saved.storage.names if f"train/{name}" not in bad] == list(
        find(odd, "train", 3).storage.names
    )


def test_one_of_each_defect_in_shards(odd: Path, tmp_path: Path) -> None:
    root = pack(odd, tmp_path / "shards", 2)
    result = audited(root)
    train = result["splits"]["train"]
    assert train["classes"] == {"0": 14, "1": 15, "2": 13}
    assert result["class_list"] == {"count": 3, "sha256": None, "is_imagenet": False}
    assert train["misnamed"]["count"] == 5  # all are called .jpg
    for trait, names in ((trait, names) for trait, names in TRAITS.items() if trait != "misnamed"):
        found = [name.rpartition(":") for name in train[trait]["names"]]
        assert {shard for shard, _, _ in found} <= {"train/0.tar", "train/1.tar"}
        assert [name for _, _, name in found] == [name.rpartition(".")[0] + ".jpg" for name in names], trait
    assert train["duplicates"]["count"] == 1
    bad = {name.rpartition(".")[0] + ".jpg" for name in BAD}
    assert {path.partition(":")[2] for path in train["undecodable"]} == bad
    for path, entry in train["undecodable"].items():
        assert entry["file"] == path.partition(":")[0]
        assert entry["bytes"] == (root / entry["file"]).stat().st_size
    assert set(find(root, "train", 3).storage.names).isdisjoint(bad)
    assert len(find(root, "train", 3)) == 42 - len(bad)


@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_training_after_an_audit_meets_nothing_bad(odd: Path, backend: str) -> None:
    audited(odd)
    loader = train_loader(
        Folder(classes=3, crop=32, resize=40),
        Source(odd, backend, workers=1, max_bad=0),
        9,
        9,
        0,
        0,
        1,
        torch.device("cpu"),
    )
    assert loader.images == 42 - len(BAD)
    assert all(len(batch.labels) == 9 for number in range(2) for batch in loader.batches(number, 0))
    assert not loader.bad
    loader.close()


def test_images_that_decoders_see_differently_are_listed(few_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ones agree on all that the catalogue has: here what PIL makes of an image is changed."""
    real = findings.decode

    def other(content: bytes) -> Image.Image:
        image = real(content)
        if content == (few_images / "train/class1/004.JPEG").read_bytes():
            image.putpixel((3, 5), tuple((level + 4) % 256 for level in image.getpixel((3, 5))))
        return image

    monkeypatch.setattr(findings, "decode", other)
    assert audited(few_images)["splits"]["train"]["decoded_differently"]["names"] == ["train/class1/004.JPEG"]
    assert "differ by more than 3 of 255 levels, used: 1" in (few_images / "audit.txt").read_text()


def test_what_was_mended_is_used_at_once_and_a_second_audit_forgets_it(
    odd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audited(odd)
    good = (odd / "train/class0/000.JPEG").read_bytes()
    for name in BAD:
        (odd / "train" / name).write_bytes(good)
    assert len(find(odd, "train", 3)) == 42
    result = audited(odd)
    assert not result["splits"]["train"]["undecodable"]
    assert "Nothing to do: every image can be decoded." in capsys.readouterr().out
    group = max(result["splits"]["train"]["duplicates"]["names"], key=len)
    assert group == sorted(["train/class0/000.JPEG", *(f"train/{name}" for name in BAD)])


def test_images_that_a_list_names_are_used(few_images: Path) -> None:
    """As in Kaggle's ImageNet, whose validation images lie side by side."""
    files = sorted((few_images / "val").glob("*/*.JPEG"))
    (few_images / "LOC_val_solution.csv").write_text("".join(f"{file.stem},{file.parent.name}\n" for file in files))
    for file in files:
        file.rename(few_images / "val" / file.name)
    val = audited(few_images)["splits"]["val"]
    assert (val["images"], val["not_images"]["count"]) == (9, 0)


def test_a_set_with_one_split_and_unusable_sets(few_images: Path) -> None:
    for path in sorted((few_images / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (few_images / "val").rmdir()
    assert list(audited(few_images)["splits"]) == ["train"]
    with pytest.raises(UsageError, match="no such folder; expected DIR/train/CLASS"):
        audit(few_images / "nowhere", 1)
    with pytest.raises(UsageError, match="has neither a folder train/ nor shards"):
        audit(few_images / "train", 1)
    (few_images / "train/empty").mkdir()
    with pytest.raises(UsageError, match="empty: an empty class folder"):
        audit(few_images, 1)


def test_the_program_finds_the_same(odd: Path) -> None:
    expected = audited(odd)
    done = run("launch.prepare", "audit", odd, "--processes", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (odd / "audit.txt").read_text()
    got = json.loads((odd / "audit.json").read_text())
    assert {key: got[key] for key in expected if key not in ("made", "seconds")} == {
        key: value for key, value in expected.items() if key not in ("made", "seconds")
    }


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_audit_that_is_stopped_leaves_the_old_one_whole(few_images: Path, number: int) -> None:
    audited(few_images)
    old = {name: (few_images / name).read_bytes() for name in ("audit.json", "audit.txt")}
    pipe = few_images / "train/class1/wait.JPEG"
    os.mkfifo(pipe)  # whoever reads it waits
    program = subprocess.Popen(
        command("launch.prepare", "audit", few_images, "--processes", 2),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # tests that run in the background ignore it, and so would this
    )
    writer = open_when_read(pipe)
    program.send_signal(number)
    _, errors = program.communicate(timeout=60)  # until the last process that could write there has ended
    os.close(writer)
    assert program.returncode == (-9 if number == signal.SIGKILL else 130)
    assert number == signal.SIGKILL or errors == "interrupted\n"
    assert {name: (few_images / name).read_bytes() for name in old} == old


def open_when_read(pipe: Path) -> int:
    for _ in range(600):
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nobody reads {pipe}")
