"""launch.predict says of files what launch.evaluate says of the same images in a data set."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch import evaluate, predict, report
from senet.errors import RunError, UsageError
from senet.train.predictions import Predictions
from tests.helpers import ROOT


def test_files_are_seen_as_in_a_validation(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(images / "val" / "class1", mixed / "class1")
    with Image.open(sorted((mixed / "class1").iterdir())[0]) as first:
        first.convert("RGBA").save(mixed / "own.png")
    (mixed / "class1" / "torn.jpg").write_bytes(b"\xff\xd8 and no more")
    assert evaluate.main([str(trained), "--data", str(images), "--predictions", str(tmp_path / "all.csv")]) == 0
    assert predict.main([str(trained), str(mixed), "--top", "3", "--out", str(tmp_path / "mixed.jsonl")]) == 0
    said = capsys.readouterr()
    assert f"left out: {mixed}/class1/torn.jpg: a JPEG without" in said.err
    rows = [json.loads(line) for line in (tmp_path / "mixed.jsonl").read_text().splitlines()]
    with (tmp_path / "all.csv").open() as file:
        known = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert len(known) == 203
    own = [row for row in rows if row["image"].endswith("own.png")]
    named = [row for row in rows if row not in own]
    assert [row["top"] for row in own] == [named[0]["top"]]
    assert "label" not in own[0]
    assert len(named) == 68
    for row in named:
        theirs = known[Path(row["image"]).name]
        assert row["label"] == theirs["label"] == "class1"
        assert [name for name, _ in row["top"]] == [theirs[f"class{place}"] for place in (1, 2, 3)]
        assert row["of_label"] == pytest.approx(float(theirs["of_label"]), abs=1e-5)
    wrong = sum(row["top"][0][0] != "class1" for row in named)
    assert f"{wrong} of 68 pictures in folders of a class are taken for another" in said.out


def test_the_weights_in_the_repository_know_their_pictures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    weights = Path("configs/cifar10/weights")
    assert predict.main([str(weights), str(weights / "images")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{weights}/images/airplane/24.png: airplane 9")  # called as the person has called it
    assert "0 of 10 pictures in folders of a class are taken for another" in said
    assert report.main(["configs/cifar10/logs/fast/fast_se_resnet20-seed1.jsonl", "--table"]) == 0
    error = capsys.readouterr().out.splitlines()[-1].split(" | ")[5]
    assert f"top-1 error {error} %" in (weights / "README.md").read_text()


def test_a_table_has_all_columns_if_the_labels_of_some_images_are_known(tmp_path: Path) -> None:
    logs = torch.tensor([[0.2, 0.8], [0.6, 0.4]]).log()
    found = Predictions.of(np.arange(2), np.array([-1, 1]), logs)
    found.write(tmp_path / "two.csv", str, ("cat", "dog"))
    with (tmp_path / "two.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["image"], first["label"], first["class1"], first["probability1"]) == ("0", "", "dog", "0.8")
    assert (second["label"], second["of_label"], second["class1"], second["class2"]) == ("dog", "0.4", "cat", "dog")


def test_a_sheet_and_what_cannot_be_predicted(
    trained: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [str(file) for file in sorted((images / "val" / "class0").iterdir())[:7]]
    assert predict.main([str(trained), *files, "--out", str(tmp_path / "sheet.png"), "--backend", "pillow"]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (16 + 5 * 240, 16 + 2 * (224 + 19 * 4 + 16))
    with pytest.raises(UsageError, match=r"nowhere: no such file or folder"):
        predict.main([str(trained), str(tmp_path / "nowhere")])
    with pytest.raises(UsageError, match=r"name a file in a folder that exists, ending in \.png"):
        predict.main([str(trained), *files, "--out", str(tmp_path / "sheet.docx")])
    (tmp_path / "torn.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="not one image could be decoded"):
        predict.main([str(trained), "torn.jpg", "--backend", "pillow"])
    assert "left out: torn.jpg: an empty file" in capsys.readouterr().err
