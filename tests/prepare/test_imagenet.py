"""ImageNet from its archives, on a small copy of their real layout: tars in a tar, a devkit with a MATLAB file, the
classes' real names.
"""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
import tarfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from launch.prepare import main
from senet.data.imagenet import classes
from senet.data.storage.find import listing, saved_listing
from senet.data.storage.folders import Folders
from senet.errors import UsageError
from senet.prepare import published, wnids
from senet.prepare.encoding import Encoding
from senet.prepare.imagenet import Sources, prepare
from senet.prepare.plan import require_space
from senet.prepare.shards import Packing
from tests.helpers import ROOT, command, environment

WNIDS = ("n01440764", "n01443537", "n02119789", "n07742313")
DEVKIT_IDS = {"n01440764": 449, "n01443537": 450, "n02119789": 1, "n07742313": 318}
PLAIN = Encoding()


@dataclass
class Archives:
    """`wide` images are 900 pixels wide, the others at most 60."""

    folder: Path
    train: dict[str, bytes] = field(default_factory=dict)  # n.../n..._1.JPEG -> content
    val: dict[str, bytes] = field(default_factory=dict)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def words(self) -> list[str]:
        return [
            "--train-tar",
            self.path("train.tar"),
            "--val-tar",
            self.path("val.tar"),
            "--partial",
            "--processes",
            "1",
        ]

    @property
    def both(self) -> Sources:
        return Sources(self.folder / "train.tar", self.folder / "val.tar", self.folder / "devkit.tar.gz")


def picture(generator: np.random.Generator, width: int, height: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pack(path: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def packed(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def make_devkit(folder: Path, answers: list[str]) -> None:
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{DEVKIT_IDS[wnid]}\n" for wnid in answers))
    with tarfile.open(folder / "devkit.tar.gz", "w:gz") as archive:
        archive.add(data.parent, data.parent.name)


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    made = Archives(tmp_path_factory.mktemp("archives"))
    generator = np.random.default_rng(0)
    for wnid in WNIDS:
        for number in (7, 12, 100):
            content = picture(
                generator, 900 if number == 100 else 60, 700 if number == 100 else int(generator.integers(30, 60))
            )
            made.train[f"{wnid}/{wnid}_{number}.JPEG"] = content
    made.train[f"{WNIDS[0]}/{WNIDS[0]}_9.JPEG"] = picture(generator, 40, 40, "PNG")  # there is one such in the real set
    pack(made.folder / "train.tar", {
        f"{wnid}.tar": packed({n.partition("/")[2]: content for n, content in made.train.items() if n.startswith(wnid)})
        for wnid in reversed(WNIDS)
    })  # fmt: skip
    answers = [WNIDS[number] for number in (2, 0, 3, 1, 3, 2, 1, 0)]
    images = {f"ILSVRC2012_val_{number:08}.JPEG": picture(generator, 50, 40) for number in range(1, 9)}
    made.val = {f"{wnid}/{name}": content for wnid, (name, content) in zip(answers, images.items(), strict=True)}
    pack(made.folder / "val.tar", dict(reversed(images.items())))
    make_devkit(made.folder, answers)
    (made.folder / "synsets.txt").write_text("".join(f"{wnid}\n" for wnid in answers))
    (made.folder / "names.txt").write_text(
        "".join(f"{name} {wnid}\n" for name, wnid in sorted(zip(images, answers, strict=True), reverse=True))
    )
    listed = list(classes())
    (made.folder / "caffe.txt").write_text(
        "".join(f"val/{name} {listed.index(wnid)}\n" for name, wnid in zip(images, answers, strict=True))
    )
    (made.folder / "kaggle.csv").write_text(
        "ImageId,PredictionString\n"
        + "".join(f"{name[:-5]},{wnid} 1 2 3 4 {wnid} 5 6 7 8 \n" for name, wnid in zip(images, answers, strict=True))
    )
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Everything but lists with times in them."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix != ".npz"
    }


def images(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if "/" in name}


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
            file.extractall(tmp_path / "kaggle")  # noqa: S202
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


def test_another_plan_is_refused(archives: Archives, tmp_path: Path) -> None:
    train = Sources(train=archives.folder / "train.tar")
    prepare(tmp_path / "set", train, PLAIN, partial=True, processes=1)
    before = contents(tmp_path / "set")
    with pytest.raises(UsageError, match="short_side None instead of 64"):
        prepare(tmp_path / "set", train, Encoding(short_side=64), partial=True, processes=1)
    assert contents(tmp_path / "set") == before
    (tmp_path / "mine" / "train" / "cats").mkdir(parents=True)
    with pytest.raises(UsageError, match="not empty"):
        prepare(tmp_path / "mine", train, PLAIN, partial=True, processes=1)


def test_a_class_that_was_damaged_is_named_and_then_mended(
    archives: Archives, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = Sources(train=archives.folder / "train.tar")
    prepare(tmp_path, train, PLAIN, partial=True, processes=1)
    before = contents(tmp_path)
    (tmp_path / "train" / WNIDS[1] / f"{WNIDS[1]}_7.JPEG").unlink()
    with pytest.raises(UsageError, match=f"{WNIDS[1]}: holds other files than its 3 images; remove this folder"):
        prepare(tmp_path, train, PLAIN, partial=True, processes=1)
    for path in (tmp_path / "train" / WNIDS[1]).iterdir():
        path.unlink()
    (tmp_path / "train" / WNIDS[1]).rmdir()
    prepare(tmp_path, train, PLAIN, partial=True, processes=1)
    assert contents(tmp_path) == before


def test_counts_are_checked(archives: Archives, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match=r"13 images of 4 classes, not the 1,281,167 of 1,000.*--partial"):
        prepare(tmp_path, archives.both, PLAIN, processes=1)
    assert not (tmp_path / "train").exists()
    with caplog.at_level(logging.WARNING):
        prepare(tmp_path, archives.both, PLAIN, partial=True, processes=1)
    assert "8 images of 4 classes, not the 50,000" in caplog.text


def test_partial_sets_keep_the_classes_that_both_have(archives: Archives, tmp_path: Path) -> None:
    few = {f"{wnid}.tar": packed({f"{wnid}_1.JPEG": b"x"}) for wnid in WNIDS[:2]}
    sources = Sources(
        pack(tmp_path / "few.tar", few), archives.folder / "val.tar", labels=archives.folder / "names.txt"
    )
    prepare(tmp_path / "set", sources, PLAIN, partial=True, processes=1)
    assert {name.split("/")[1] for name in images(tmp_path / "set")} == set(WNIDS[:2])
    assert len(listing(tmp_path / "set", "val")) == 4


def odd(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"content") -> bytes:
    """A tar of a good image and a bad member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for info, data in ((tarfile.TarInfo(f"{WNIDS[0]}_1.JPEG"), b"good"), (tarfile.TarInfo(name), content)):
            info.type, info.linkname = (kind, "/etc/passwd") if data is content else (tarfile.REGTYPE, "")
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (odd(f"/tmp/{WNIDS[0]}_2.JPEG"), "outside"),  # noqa: S108
        (odd(f"../{WNIDS[0]}_2.JPEG"), "outside"),
        (odd(f"{WNIDS[0]}_2.JPEG", tarfile.SYMTYPE), "link"),
        (odd(f"{WNIDS[0]}_2.JPEG", tarfile.LNKTYPE), "link"),
        (odd(f"{WNIDS[0]}_2.JPEG", tarfile.CHRTYPE), "neither"),
        (odd(f"{WNIDS[0]}_2.JPEG", tarfile.FIFOTYPE), "neither"),
        (odd(f"{WNIDS[0]}_2.JPEG", content=bytes(5000)), "5000 bytes"),
        (odd(f"{WNIDS[0]}_2.JPEG", content=b""), "has 0 bytes"),
        (odd(f"{WNIDS[0]}_1.JPEG"), "twice"),
        (odd(f"{WNIDS[1]}_2.JPEG"), "does not belong"),
        (odd(".bashrc"), "does not belong"),
        (odd(f"{WNIDS[0]}_2.JPEG")[:1200], "damaged"),
        (odd(f"{WNIDS[0]}_2.JPEG")[:1024] + b"\x55" * 1024, "damaged"),
        (b"", "has 0 bytes"),
        (b"<html>" * 1000, "not a tar"),
    ],
)
def test_hostile_and_damaged_archives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: bytes, reason: str
) -> None:
    monkeypatch.setattr(published, "LARGEST_IMAGE", 4999)
    tar = pack(tmp_path / "train.tar", {f"{WNIDS[0]}.tar": inner})
    with pytest.raises(UsageError, match=reason) as caught:
        prepare(tmp_path / "set", Sources(train=tar), PLAIN, partial=True, processes=1)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "set").iterdir())


def test_the_wrong_archive_is_refused(archives: Archives, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not belong there"):
        prepare(tmp_path, Sources(train=archives.folder / "val.tar"), PLAIN, partial=True, processes=1)
    with pytest.raises(UsageError, match=r"twice|does not belong there"):
        prepare(
            tmp_path,
            Sources(val=archives.folder / "train.tar", devkit=archives.folder),
            PLAIN,
            partial=True,
            processes=1,
        )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--train-tar, --val-tar or both"),
        (["--val-tar", "val.tar"], "either --devkit or --val-labels"),
        (["--val-tar", "val.tar", "--devkit", ".", "--val-labels", "names.txt"], "either --devkit or --val-labels"),
        (["--train-tar", "train.tar", "--devkit", "."], "of no use"),
        (["--train-tar", "absent.tar"], "no such file"),
        (["--train-tar", "train.tar", "--short-side", "0"], "at least 1"),
        (["--train-tar", "train.tar", "--quality", "101"], "1 to 100"),
        (["--train-tar", "train.tar", "--partial", "--processes", "0"], "--processes 0"),
        (["--train-tar", "train.tar", "--shards", "--shard-mb", "0"], "--shard-mb 0"),
        (["--val-tar", "val.tar", "--val-labels", "val.tar"], "cannot be read|neither a wnid"),
        (["--val-tar", "val.tar", "--devkit", "val.tar"], "no ILSVRC2012_validation_ground_truth.txt"),
    ],
)
def test_mistaken_flags_are_named(
    archives: Archives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.chdir(archives.folder)
    with pytest.raises(UsageError, match=reason):
        main(["imagenet", str(tmp_path), *words])


def test_labels_of_another_numbering_are_refused(archives: Archives, tmp_path: Path) -> None:
    file = tmp_path / "devkit.txt"
    file.write_text("ILSVRC2012_val_00000001.JPEG 490\nILSVRC2012_val_00000002.JPEG 1000\n")
    with pytest.raises(UsageError, match=r"numbers go to 1000, as the devkit's.*--devkit"):
        wnids.listed_labels(file)
    file.write_text("ILSVRC2012_val_00000001.JPEG 490\nILSVRC2012_val_00000002.JPEG 1001\n")
    with pytest.raises(UsageError, match=r"line 2: .* is neither a wnid, nor"):
        wnids.listed_labels(file)


def test_missing_labels_are_named(archives: Archives, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("n01440764\n" * 3)
    with pytest.raises(UsageError, match="ILSVRC2012_val_00000004 has no label"):
        prepare(tmp_path, Sources(val=archives.folder / "val.tar", labels=tmp_path / "short.txt"), PLAIN, True, 1)


def test_a_full_disk_is_noticed_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_space(tmp_path / "deep" / "set", 1000, shrinking=False)
    with pytest.raises(UsageError, match=r"1152921504\.6 GB to write"):
        require_space(tmp_path / "deep" / "set", 1 << 60, shrinking=False)
    require_space(tmp_path, 1 << 60, shrinking=True)
    assert "before making images smaller" in caplog.text


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
