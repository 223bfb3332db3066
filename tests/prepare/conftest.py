"""ImageNet's archives, on a small copy of their real layout: tars in a tar, a devkit, the classes' real names."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from senet.data.imagenet import classes
from senet.prepare.encoding import Encoding
from senet.prepare.imagenet import Sources

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


def pack(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(packed(files))
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
