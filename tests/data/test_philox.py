"""The random numbers behind order and augmentation."""

import numpy as np

from senet.data.philox import crops, flips, permutation, philox, uniforms
from senet.data.sampler import NUMBER, TrainSampler, ValSampler


def test_philox_known_answers() -> None:
    """Random123's published vectors."""
    zeros = philox([np.zeros(1, np.uint64)] * 4, (0, 0))
    assert [int(w[0]) for w in zeros] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = philox([np.full(1, 0xFFFFFFFF, np.uint64)] * 4, (0xFFFFFFFF, 0xFFFFFFFF))
    assert [int(w[0]) for w in ones] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_uniforms_depend_on_seed_epoch_and_image_only() -> None:
    all_of_them = uniforms(1, 2, np.arange(1000), 23)
    assert np.array_equal(uniforms(1, 2, np.array([7, 500]), 23), all_of_them[[7, 500]])
    for other in (uniforms(2, 2, np.arange(1000), 23), uniforms(1, 3, np.arange(1000), 23)):
        assert (other != all_of_them).mean() > 0.99
    assert abs(all_of_them.mean() - 0.5) < 0.01
    assert all_of_them.min() >= 0
    assert all_of_them.max() < 1


def test_two_epochs_of_alternating_flips_show_both_sides() -> None:
    keys, draws = np.arange(1000), np.zeros(1000)
    first, second, third = (flips("alternate", draws, 0, epoch, keys) for epoch in range(3))
    assert np.array_equal(first, ~second)
    assert np.array_equal(first, third)
    assert 0.45 < first.mean() < 0.55
    assert (flips("alternate", draws, 1, 0, keys) != first).mean() > 0.4
    assert np.array_equal(flips(True, np.array([0.4, 0.6]), 0, 1, keys[:2]), [True, False])
    assert not flips(False, draws, 0, 0, keys).any()


def test_permutation() -> None:
    first, second = permutation(0, 0, 10_001), permutation(0, 1, 10_001)
    assert np.array_equal(np.sort(first), np.arange(10_001))
    assert (first != second).mean() > 0.99


def test_crops_have_the_papers_area_and_aspect() -> None:
    n = 4000
    heights, widths = np.full(n, 300), np.full(n, 400)
    y, x, h, w = crops(uniforms(0, 0, np.arange(n), 22), heights, widths, (0.08, 1.0), (3 / 4, 4 / 3)).T
    assert (y >= 0).all()
    assert (x >= 0).all()
    assert (y + h <= 300).all()
    assert (x + w <= 400).all()
    area, aspect = h * w / 120_000, w / h
    assert 0.07 < area.min() < 0.1
    assert 0.95 < area.max() <= 1
    assert 0.4 < area.mean() < 0.54
    assert 0.73 < aspect.min() < 0.77
    assert 1.3 < aspect.max() < 1.36


def test_crops_that_never_fit_fall_back_to_the_centre_as_in_torchvision() -> None:
    heights, widths = np.array([10, 1000]), np.array([1000, 10])
    boxes = crops(uniforms(0, 0, np.arange(2), 22), heights, widths, (0.9, 1.0), (3 / 4, 4 / 3))
    assert boxes.tolist() == [[0, 493, 10, 13], [493, 0, 13, 10]]


def test_global_batches_are_the_same_on_any_number_of_ranks() -> None:
    def batches(world: int, micro_batch: int) -> list[list[int]]:
        samplers = [TrainSampler(100, 24, micro_batch, 5, rank, world) for rank in range(world)]
        steps, micro = samplers[0].steps, samplers[0].accumulation_steps
        numbers = [range((3 * steps + step) * micro, (3 * steps + step + 1) * micro) for step in range(steps)]
        return [[int(i) for sampler in samplers for m in part for i in sampler.keys(m)] for part in numbers]

    alone = batches(1, 24)
    assert len(alone) == 4
    assert len({i for batch in alone for i in batch}) == 96
    assert batches(2, 6) == batches(3, 8) == batches(4, 3) == alone


def test_repeats_give_each_batch_copies_of_fewer_images() -> None:
    samplers = [TrainSampler(100, 24, 6, 5, rank, 2, repeats=3) for rank in range(2)]
    batches = [np.concatenate([s.keys((12 + step) * 2 + m) for s in samplers for m in range(2)]) for step in range(4)]
    for batch in batches:
        assert sorted(np.unique(batch & NUMBER, return_counts=True)[1].tolist()) == [3] * 8
        assert len(set(batch.tolist())) == 24
    assert len({i for batch in batches for i in (batch & NUMBER).tolist()}) == 32


def test_balance_gives_classes_turns() -> None:
    labels = np.repeat([0, 1, 3], [70, 25, 5])
    sampler = TrainSampler(100, 30, 30, 5, 0, 1, balance=labels)
    keys = np.concatenate([sampler.keys(step) for step in range(3)])
    assert np.bincount(labels[keys & NUMBER]).tolist() == [30, 30, 0, 30]
    assert len(set(keys.tolist())) == 90
    for start in range(0, 90, 3):
        assert set(labels[keys[start : start + 3] & NUMBER]) == {0, 1, 3}
    rare = keys[labels[keys & NUMBER] == 3]
    assert np.bincount((rare & NUMBER) - 95).tolist() == [6] * 5
    assert (sampler.keys(3) != sampler.keys(0)).mean() > 0.6


def test_replacements_are_any_images() -> None:
    sampler = TrainSampler(100, 20, 20, 5, 0, 1)
    first = sampler.replacements(0, np.arange(1000), 0)
    assert first.min() >= 0
    assert first.max() == 99
    assert (first != sampler.replacements(0, np.arange(1000), 1)).mean() > 0.9
    assert np.array_equal(first[:7], sampler.replacements(0, np.arange(7), 0))


def test_validation_deals_out_each_image_once() -> None:
    for world in (1, 2, 3, 5):
        parts = [np.concatenate([*ValSampler(203, 100, rank, world).batches, []]) for rank in range(world)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(203))
