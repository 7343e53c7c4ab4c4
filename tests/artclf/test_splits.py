from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artclf.errors import ConfigError
from artclf.records import SPLITS
from artclf.splits import assign_splits, check_ratios, place

DEFAULT = (0.8, 0.1, 0.1)


def split(labels: list[int], groups: list[int], seed: int = 0, ratios: tuple[float, ...] = DEFAULT) -> list[int]:
    places = np.array([place(seed, str(group).encode()) for group in groups], np.uint64)
    names = [f"class {label}" for label in range(max(labels) + 1)]
    return list(assign_splits(np.array(labels), np.array(groups), places, ratios, names))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=60),
    st.integers(0, 5),
    st.tuples(*[st.floats(0.05, 1)] * 3),
)
def test_groups_stay_whole_and_every_class_is_in_every_split(
    extra: list[tuple[int, int]], seed: int, weights: tuple[float, float, float]
) -> None:
    sizes = [(label, 1) for label in range(3) for _ in range(3)] + extra
    labels = [label for label, size in sizes for _ in range(size)]
    groups = [number for number, (_, size) in enumerate(sizes) for _ in range(size)]
    ratios = tuple(weight / math.fsum(weights) for weight in weights)
    chosen = split(labels, groups, seed, ratios)
    assert all(len({s for s, g in zip(chosen, groups, strict=True) if g == group}) == 1 for group in groups)
    for label in set(labels):
        assert {s for s, own in zip(chosen, labels, strict=True) if own == label} == {0, 1, 2}


@settings(deadline=None)
@given(st.lists(st.integers(3, 400), min_size=1, max_size=5))
def test_single_pictures_are_split_to_the_nearest_number(counts: list[int]) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    chosen = np.array(split(labels, list(range(len(labels)))))
    for label, count in enumerate(counts):
        shares = np.bincount(chosen[np.array(labels) == label], minlength=3)
        assert shares.sum() == count and shares.min() >= 1
        if count >= 20:
            assert all(abs(share - ratio * count) < 1 for share, ratio in zip(shares, DEFAULT, strict=True))


def test_the_order_of_the_listing_does_not_matter() -> None:
    pictures = [(number % 3, number // 2 * 3 + number % 3) for number in range(300)]
    before = dict(zip(pictures, split(*map(list, zip(*pictures, strict=True))), strict=True))  # type: ignore[arg-type]
    random.Random(1).shuffle(pictures)
    after = dict(zip(pictures, split(*map(list, zip(*pictures, strict=True))), strict=True))  # type: ignore[arg-type]
    assert before == after


def test_another_seed_splits_otherwise() -> None:
    labels = [0] * 100 + [1] * 100
    assert split(labels, list(range(200)), seed=0) != split(labels, list(range(200)), seed=1)


def test_the_split_of_known_keys_is_the_same_on_every_machine() -> None:
    chosen = split([0] * 10 + [1] * 10, list(range(20)))
    assert [SPLITS[number] for number in chosen] == [
        *("train", "train", "train", "test", "train", "train", "train", "train", "train", "val"),
        *("train", "val", "train", "train", "train", "train", "train", "train", "train", "test"),
    ]


def test_a_group_of_two_classes_goes_to_train() -> None:
    labels = [0] * 10 + [1] * 10
    groups = list(range(20))
    groups[10] = groups[0]
    for seed in range(20):
        chosen = split(labels, groups, seed)
        assert chosen[0] == chosen[10] == SPLITS.index("train")


def test_a_large_group_does_not_empty_another_split() -> None:
    assert sorted(split([0] * 12, [0] * 10 + [1, 2])) == [0] * 10 + [1, 2]


def test_every_class_too_small_is_named() -> None:
    with pytest.raises(ConfigError, match=r"class 0 \(2\), class 2 \(1\)"):
        split([0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 3, 4, 5, 5, 5])


@pytest.mark.parametrize(
    "ratios", [(1,), (0.5, 0.5), (0.8, 0.2, 0.0), (0.8, 0.3, -0.1), (0.3, 0.3, 0.3), (math.inf,) * 3]
)
def test_ratios_that_are_no_shares_of_one_stop(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        check_ratios(ratios)
