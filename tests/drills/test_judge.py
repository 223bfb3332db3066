"""The judges of the drills notice what they should."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.drills import judge, ledger
from tests.helpers import differences


def test_a_difference_of_one_bit_is_found() -> None:
    one = {"net": {"w": torch.ones(3)}, "meters": [1, (2, 3)]}
    other = {"net": {"w": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}, "meters": [1, (2, 4)]}
    assert list(differences(one, one)) == []
    assert list(differences(one, other)) == [".net.w: other values", ".meters[1][1]: 3 instead of 4"]


def write(folder: Path, rank: int, *entries: tuple[int, list[int], int]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [
        json.dumps({"step": step, "rank": rank, "micro": 0, "of": 2, "keys": keys, "at": at})
        for step, keys, at in entries
    ]
    (folder / f"rank-{rank}.jsonl").write_text("\n".join(lines) + '\n{"step": 1, "ra')


def test_the_ledger_counts_the_last_time_of_a_step_and_finds_images_twice_or_missing(tmp_path: Path) -> None:
    good, twice, short = tmp_path / "good", tmp_path / "twice", tmp_path / "short"
    for rank in (0, 1):
        # Step 1 was begun, with other images, and repeated after a fault.
        write(good, rank, (0, [rank], 1), (1, [7 + rank], 2), (1, [2 + rank], 3))
        write(twice, rank, (0, [rank], 1), (1, [rank], 3))
    write(short, 0, (0, [0], 1), (1, [2], 3))
    write(short, 1, (0, [1], 1))
    assert ledger.read(good) == ({0: [0, 1], 1: [2, 3]}, 1)
    assert judge.images(good, good, steps=2, batch=2) == []
    assert judge.images(twice, None, steps=2, batch=2) == ["epoch 1: 2 images twice"]
    assert judge.images(short, None, steps=2, batch=2) == ["epoch 1: 3 images instead of 4"]
    assert judge.images(twice, good, steps=2, batch=2)[1:] == ["other images in some steps than undisturbed"]
