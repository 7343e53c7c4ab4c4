"""Which pictures train, which validate, which test: stratified, by hash, whole groups together.

The outcome depends on the pictures, the seed and the ratios alone: not on the order of a listing, the
locale or the machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from artclf.errors import ConfigError
from artclf.records import SPLITS

Ints = npt.NDArray[np.int64]


def check_ratios(ratios: Sequence[float]) -> None:
    """Checks the shares of train, val and test.

    Raises:
        ConfigError: unless they are three numbers above 0 that sum to 1.
    """
    usable = len(ratios) == len(SPLITS) and all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)
    if not usable or abs(sum(ratios) - 1) > 1e-6:
        received = ",".join(f"{ratio:g}" for ratio in ratios)
        raise ConfigError(f"--splits: expected three shares above 0 that sum to 1 (0.8,0.1,0.1), received {received}.")


def place(seed: int, key: bytes) -> int:
    """Returns a group's place in the drawing of lots: 64 bits of the SHA-256 of seed and key."""
    return int.from_bytes(hashlib.sha256(f"{seed} ".encode() + key).digest()[:8], "big")


def assign_splits(
    labels: Ints, groups: Ints, places: npt.NDArray[np.uint64], ratios: Sequence[float], class_names: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """Returns (N,) the place in SPLITS of each picture; no group is in two splits, no class misses one.

    A group with pictures of several classes goes to train: its label is in doubt, and a doubtful
    label should not decide a score.

    Args:
        labels: (N,) class of each picture.
        groups: (N,) group of each picture.
        places: (N,) ``place`` of each picture's group.
        ratios: shares of train, val and test.
        class_names: to name classes in messages.

    Raises:
        ConfigError: naming every class that cannot be in all splits.
    """
    mixed = _mixed_groups(labels, groups)
    splits = np.zeros(len(labels), np.uint8)
    too_small = []
    for label in range(len(class_names)):
        members = np.flatnonzero(labels == label)
        numbers, first, sizes = np.unique(groups[members], return_index=True, return_counts=True)
        free = ~np.isin(numbers, mixed)
        if free.sum() < len(SPLITS) - 1 or len(numbers) < len(SPLITS):
            shared = f", {len(numbers) - free.sum()} of them in other classes too" if not free.all() else ""
            too_small.append(f"{class_names[label]} ({len(numbers)}{shared})")
            continue
        order = np.lexsort((places[members[first]][free], -sizes[free]))
        drawn = _draw(sizes[free][order].tolist(), int(sizes[~free].sum()), _targets(len(members), ratios, label))
        chosen = np.zeros(len(numbers), np.uint8)
        chosen[np.flatnonzero(free)[order]] = drawn
        splits[members] = chosen[np.searchsorted(numbers, groups[members])]
    if too_small:
        raise ConfigError(
            f"expected at least {len(SPLITS)} different pictures in every class, one for each of {', '.join(SPLITS)}; "
            f"too few in: {', '.join(too_small[:10])}{' …' if len(too_small) > 10 else ''}. "
            "Add pictures, or move these classes out of the sources."
        )
    return splits


def _mixed_groups(labels: Ints, groups: Ints) -> Ints:
    """Returns the groups that hold pictures of more than one class."""
    pairs = np.unique(np.stack([groups, labels], axis=1), axis=0)
    numbers, classes = np.unique(pairs[:, 0], return_counts=True)
    return numbers[classes > 1]


def _targets(count: int, ratios: Sequence[float], turn: int) -> list[int]:
    """Returns how many pictures each split should get: largest remainders, at least one each.

    Among equal remainders the classes take turns, so that over many classes no split gains by rounding.
    """
    exact = [ratio * count for ratio in ratios]
    targets = [max(1, math.floor(share + 1e-9)) for share in exact]
    by_remainder = sorted(
        range(len(ratios)), key=lambda split: (round(targets[split] - exact[split], 9), (split + turn) % 3)
    )
    for split in by_remainder[: max(0, count - sum(targets))]:
        targets[split] += 1
    targets[0] -= max(0, sum(targets) - count)
    return targets


def _draw(sizes: list[int], train_has: int, targets: list[int]) -> list[int]:
    """Returns a split for each group, given in their order: each goes where most is missing, but
    the last ones to splits that would stay empty."""
    missing = [targets[0] - train_has, *targets[1:]]
    empty = {split for split in range(len(targets)) if split or not train_has}
    drawn = []
    for place, size in enumerate(sizes):
        wanted = empty if len(sizes) - place <= len(empty) else range(len(targets))
        split = max(wanted, key=lambda split: (missing[split], -split))
        missing[split] -= size
        empty.discard(split)
        drawn.append(split)
    return drawn
