"""ImageNet from its archives: every way to it gives the same images, also after a kill."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from launch.prepare import main
from senet.data.imagenet import classes
from senet.data.storage.find import listing, saved_listing
from senet.data.storage.folders import Folders
from senet.errors import UsageError
from senet.prepare import wnids
from senet.prepare.encoding import Encoding
from senet.prepare.imagenet import Sources, prepare
from senet.prepare.shards import Packing
from tests.helpers import ROOT, command, environment
from tests.prepare.conftest import PLAIN, WNIDS, Archives, contents, images, pack, packed, picture


@pytest.mark.parametrize(
    "labels",
    [
        ("--devkit", "devkit.tar.gz"),
        ("--devkit", ""),
        ("--val-labels", "synsets.txt"),
        ("--val-labels", "names.txt"),
        ("--val-labels", "caffe.txt"),
        ("--val-labels", "kaggle.csv"),
    ],
)
def test_every_source_of_labels_gives_the_same_folders(
    archives: Archives, tmp_path: Path, labels: tuple[str, str]
) -> None:
    assert main(["imagenet", str(tmp_path / "set"), *archives.words, labels[0], archives.path(labels[1])]) == 0
    wanted = {f"train/{name}": content for name, content in archives.train.items()}
    wanted |= {f"val/{name}": content for name, content in archives.val.items()}
    assert images(tmp_path / "set") == wanted
    assert (tmp_path / "set" / "classes.txt").read_text().split() == sorted(WNIDS)
    assert not list((tmp_path / "set").rglob(".*"))


def test_the_list_beside_is_what_listing_finds(archives: Archives, tmp_path: Path) -> None:
    prepare(tmp_path, archives.both, PLAIN, partial=True, processes=1)
    for split, count in (("train", 13), ("val", 8)):
        saved, found = saved_listing(tmp_path, split), Folders.scan(tmp_path, split)
        assert saved is not None
        assert list(saved.storage.names) == list(found.storage.names)
        assert (len(saved), saved.fingerprint, saved.classes) == (count, found.fingerprint, found.classes)


def test_second_run_changes_nothing(archives: Archives, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["imagenet", str(tmp_path), *archives.words, "--val-labels", archives.path("synsets.txt")]
    assert main(words) == 0
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.count("there already") == 2
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_splits_come_one_by_one_too(archives: Archives, tmp_path: Path) -> None:
    prepare(tmp_path / "both", archives.both, PLAIN, partial=True, processes=1)
    prepare(
        tmp_path / "one",
        Sources(val=archives.folder / "val.tar", labels=archives.folder / "synsets.txt"),
        PLAIN,
        True,
        1,
    )
    prepare(tmp_path / "one", Sources(train=archives.folder / "train.tar"), PLAIN, True, 1)
    assert images(tmp_path / "one") == images(tmp_path / "both")


@pytest.mark.parametrize("form", [(), ("--shards", "--shard-mb", "1")], ids=["folders", "shards"])
def test_a_killed_run_is_completed_to_the_same_bytes(archives: Archives, tmp_path: Path, form: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    generator = np.random.default_rng(1)
    for number, wnid in enumerate(classes()):
        if number == 40:
            break
        files = {f"{wnid}_{n}.JPEG": picture(generator, 400, 300) for n in range(4)}
        (source / f"{wnid}.tar").write_bytes(packed(files))
    tar = pack(tmp_path / "train.tar", {path.name: path.read_bytes() for path in sorted(source.iterdir())})
    words = ["--train-tar", tar, "--partial", "--processes", 2, "--short-side", 200, *form]
    started = subprocess.Popen(
        command("launch.prepare", "imagenet", tmp_path / "killed", *words),
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
    )
    base = tmp_path / "killed"
    while started.poll() is None and len([*base.glob("train/n*"), *base.glob(".train.unfinished/*.tar")]) < 2:
        time.sleep(0.002)
    os.kill(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while members(started.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not members(started.pid)  # no worker outlives it
    finished = len([*base.glob("train/n*"), *base.glob(".train.unfinished/*.tar")])
    assert 0 < finished < 40
    for name in ("killed", "whole"):
        assert (
            main(["imagenet", str(tmp_path / name), *map(str, words[:3]), "--processes", "1", *map(str, words[5:])])
            == 0
        )
    assert contents(base) == contents(tmp_path / "whole")


def members(group: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("val", [False, True])
def test_large_images_alone_are_made_smaller(archives: Archives, tmp_path: Path, val: bool) -> None:
    prepare(tmp_path, archives.both, Encoding(short_side=39, quality=80, val=val), partial=True, processes=1)
    smaller = 0
    for name, content in images(tmp_path).items():
        original = (archives.train | archives.val)[name.partition("/")[2]]
        with Image.open(io.BytesIO(original)) as large, Image.open(io.BytesIO(content)) as image:
            if min(large.size) > 39 and (val or name.startswith("train")):
                assert (image.format, min(image.size)) == ("JPEG", 39)
                assert get_sampling(image) == 0  # colours are not made coarser
                assert abs(np.asarray(image).mean() - np.asarray(large).mean()) < 3
                smaller += 1
            else:
                assert content == original
    assert smaller >= 5 + 8 * val


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_kaggles_download(archives: Archives, tmp_path: Path, form: str) -> None:
    lines = ["ImageId,PredictionString\n"]
    source = tmp_path / "kaggle.zip"
    with zipfile.ZipFile(source, "w") as file:
        for number, (name, content) in enumerate(archives.train.items()):
            how = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            file.writestr(f"ILSVRC/Data/CLS-LOC/train/{name}", content, how)
        for name, content in archives.val.items():
            file.writestr(f"ILSVRC/Data/CLS-LOC/val/{name.partition('/')[2]}", content)
            lines.append(f"{Path(name).stem},{name.partition('/')[0]} 1 2 3 4 \n")
        file.writestr("ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG", b"no label")
        file.writestr("LOC_val_solution.csv", "".join(lines))
    if form == "folder":
        with zipfile.ZipFile(source) as file:
            file.extractall(tmp_path / "kaggle")
        source = tmp_path / "kaggle"
    words = ["imagenet", str(tmp_path / "set"), "--kaggle", str(source), "--partial", "--processes", "1"]
    assert main(words) == 0
    wanted = {f"train/{name}": content for name, content in archives.train.items()}
    wanted |= {f"val/{name}": content for name, content in archives.val.items()}
    assert images(tmp_path / "set") == wanted
    assert main(["imagenet", str(tmp_path / "shards"), *words[2:], "--shards"]) == 0
    for split in ("train", "val"):
        assert listing(tmp_path / "shards", split).fingerprint == listing(tmp_path / "set", split).fingerprint
    with pytest.raises(UsageError, match="leave out --train"):
        main([*words, "--train", str(tmp_path)])
    with pytest.raises(UsageError, match=r"train\.tar: not Kaggle's archive"):
        main(["imagenet", str(tmp_path / "other"), "--kaggle", archives.path("train.tar")])


@pytest.mark.parametrize("output", [PLAIN, Packing(shard_mb=1)], ids=["folders", "shards"])
def test_what_half_finished_unpacking_leaves(archives: Archives, tmp_path: Path, output: Encoding | Packing) -> None:
    train, val = tmp_path / "train", tmp_path / "val"
    for name, content in archives.train.items():
        if not name.startswith(WNIDS[1]):  # still a tar only
            (train / name).parent.mkdir(parents=True, exist_ok=True)
            (train / name).write_bytes(content)
    for wnid in WNIDS[:2]:
        files = {name.partition("/")[2]: content for name, content in archives.train.items() if name.startswith(wnid)}
        (train / f"{wnid}.tar").write_bytes(packed(files))
    (train / WNIDS[0] / f"{WNIDS[0]}_7.JPEG").write_bytes(b"half")  # its tar is still there, and counts
    val.mkdir()
    for name, content in archives.val.items():
        (val / Path(name).name).write_bytes(content)
    whole = prepare(tmp_path / "whole", archives.both, output, partial=True, processes=1)
    sources = Sources(train, val, labels=archives.folder / "names.txt")
    assert len(prepare(tmp_path / "made", sources, output, partial=True, processes=2)) == len(whole)
    made, expected = contents(tmp_path / "made"), contents(tmp_path / "whole")
    assert {name: made[name] for name in made if name != "plan.json"} == {
        name: expected[name] for name in expected if name != "plan.json"
    }


def test_partial_sets_keep_the_classes_that_both_have(archives: Archives, tmp_path: Path) -> None:
    few = {f"{wnid}.tar": packed({f"{wnid}_1.JPEG": b"x"}) for wnid in WNIDS[:2]}
    sources = Sources(
        pack(tmp_path / "few.tar", few), archives.folder / "val.tar", labels=archives.folder / "names.txt"
    )
    prepare(tmp_path / "set", sources, PLAIN, partial=True, processes=1)
    assert {name.split("/")[1] for name in images(tmp_path / "set")} == set(WNIDS[:2])
    assert len(listing(tmp_path / "set", "val")) == 4


def test_the_shipped_classes_are_the_thousand() -> None:
    names = classes()
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in names)
    assert (names["n01440764"], names["n02119789"], len(set(names))) == ("tench", "kit_fox", 1000)


def test_the_devkits_numbers_are_those_of_its_wnids(tmp_path: Path) -> None:
    """Known from the devkit's meta.mat and the validation set's published answers."""
    file = tmp_path / "data" / "ILSVRC2012_validation_ground_truth.txt"
    file.parent.mkdir()
    file.write_text("490\n361\n171\n1\n1000\n449\n")
    assert list(wnids.devkit_labels(tmp_path).values()) == [
        "n01751748", "n09193705", "n02105855", "n02119789", "n03255030", "n01440764"
    ]  # fmt: skip
    file.write_text("".join(f"{number}\n" for number in range(1, 1001)))
    labels = wnids.devkit_labels(tmp_path)
    assert set(labels.values()) == set(classes())
    for wrong in ("0", "1001", "-1", "n01440764", "1.0", ""):
        file.write_text(f"1\n{wrong}\n2\n")
        with pytest.raises(UsageError, match=re.escape(f"{wrong!r} is no class of 1 to 1000")):
            wnids.devkit_labels(tmp_path)
