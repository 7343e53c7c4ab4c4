"""Which pictures show the same thing: equal pixels, and near duplicates found by a perceptual hash.

The hash is the sign pattern of a picture's 256 lowest spatial frequencies (a DCT hash, after Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, with 16x16 instead of 8x8
coefficients). All arithmetic is on whole numbers, so the same pixels give the same groups on every machine.

Pictures are compared only if they agree in all of some 12-16 low-frequency bits in at least one of 48
tables (locality-sensitive hashing by bit sampling, Indyk and Motwani 1998): time and memory grow
with the number of pictures, not with its square.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_DISTANCE = 60
"""Bits of 256 in which two hashes of one picture may differ. Measured on 7,100 paintings of 50 artists,
every pair looked at: all 286 pairs up to 60 show the same work (or a recoloured print of it),
the first false pair comes at 68; two different paintings differ in 128 on average."""
MIN_CORRELATION = 0.7
"""Least correlation of the two 16x16 grey thumbnails: pictures with the same outline only fail here."""
MIN_SIDE = 16
"""Pictures with a shorter side have too few patches to tell them apart; of them only equal ones are found."""
SMOOTH_DETAIL = 2.0
"""Mean curvature (grey levels) of a thumbnail below which a picture is a plain gradient or a flat colour: its
outline says little, so its colours have to agree as well."""
MAX_COLOUR_DIFFERENCE = 6.0

_SIDE, _KEPT = 32, 16
_TABLES = 48
_MAX_NEIGHBOURS = 64
"""How many of those that share a table's key a picture is compared with: bounds the work when a hundred
thousand pictures look alike. They are sorted by the whole hash, so the nearest come first."""

_MAX_REFUSED = 200_000
"""How many refused pairs are remembered, so that other tables need not look at them again: 20 MB at most."""

Hashes = npt.NDArray[np.uint64]
Thumb = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Signature:
    """What of a picture is kept to compare it with others.

    Attributes:
        pixels: 16 bytes that are equal for equal pixels.
        hash: 32 bytes, the perceptual hash; empty for a picture of one colour, which looks like any other,
            and for a tiny one.
        thumb: 16x16 RGB as 768 bytes.
        constant: whether all pixels are equal.
    """

    pixels: bytes
    hash: bytes
    thumb: bytes
    constant: bool


def _cosines() -> npt.NDArray[np.int64]:
    places = np.arange(_SIDE)
    waves = np.cos(np.pi * (2 * places + 1) * np.arange(_KEPT)[:, None] / (2 * _SIDE))
    whole: npt.NDArray[np.int64] = np.rint(waves * 4096).astype(np.int64)
    return whole


_DCT = _cosines()


def signature(pixels: npt.NDArray[np.uint8]) -> Signature:
    """Returns the signature of a picture, (H, W, 3) uint8 RGB."""
    from PIL import Image

    height, width, _ = pixels.shape
    content = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16, key=f"{width}x{height}".encode())
    small = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    colours = np.asarray(small, np.int64)
    thumb = (colours.reshape(16, 2, 16, 2, 3).sum((1, 3)) // 4).astype(np.uint8)
    grey = colours @ np.array([299, 587, 114])
    flat = bool((colours == colours[0, 0]).all())
    comparable = not flat and min(height, width) >= MIN_SIDE
    return Signature(
        pixels=content.digest(),
        hash=_hash(grey) if comparable else b"",
        thumb=thumb.tobytes(),
        constant=flat and bool((pixels == pixels[0, 0]).all()),
    )


def _hash(grey: npt.NDArray[np.int64]) -> bytes:
    waves = (_DCT @ grey @ _DCT.T).ravel()
    waves[0] = 0  # the mean brightness says nothing about what is shown
    return np.packbits(waves > np.partition(waves[1:], 127)[127]).tobytes()


class Groups:
    """Union-find over numbers 0..N-1."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int64)

    def find(self, item: int) -> int:
        """Returns the number that stands for an item's group."""
        parent = self._parent
        root = item
        while parent[root] != root:
            root = int(parent[root])
        while parent[item] != root:
            parent[item], item = root, int(parent[item])
        return root

    def join(self, first: int, second: int) -> None:
        """Makes one group of two; its lowest number stands for it."""
        a, b = self.find(first), self.find(second)
        self._parent[max(a, b)] = min(a, b)

    def roots(self) -> npt.NDArray[np.int64]:
        """Returns (N,) the lowest number of each item's group."""
        while True:
            flatter = self._parent[self._parent]
            if np.array_equal(flatter, self._parent):
                return self._parent.copy()
            self._parent = flatter


def join_near_duplicates(
    groups: Groups, members: npt.NDArray[np.int64], hashes: Hashes, thumb_of: Callable[[int], Thumb]
) -> None:
    """Joins the pictures that are nearly the same.

    Two groups are joined only if the pictures that stand for them are alike as well, so a chain of
    likenesses, each a little off, never pulls a whole set together.

    Args:
        groups: gets the joins.
        members: (M,) numbers of the pictures to compare, those of one colour left out.
        hashes: (M, 4) uint64, their perceptual hashes.
        thumb_of: gives the (16, 16, 3) uint8 thumbnail of a picture by its number; asked for few.
    """
    key_bits = min(16, max(6, int(math.log2(max(2, len(members))))))
    refused: set[int] = set()  # pairs, as one number each
    for table in range(_TABLES):
        order, keys = _bucketed(hashes, _table_bits(table, key_bits))
        alive = np.arange(len(order) - 1)
        for step in range(1, _MAX_NEIGHBOURS + 1):
            alive = alive[alive + step < len(order)]
            alive = alive[keys[alive] == keys[alive + step]]
            if not len(alive):
                break
            near = alive[_distances(hashes, order[alive], order[alive + step]) <= MAX_DISTANCE]
            pairs = np.sort(np.stack([members[order[near]], members[order[near + step]]], axis=1), axis=1)
            _join_checked(groups, pairs, thumb_of, refused)


def _join_checked(
    groups: Groups, pairs: npt.NDArray[np.int64], thumb_of: Callable[[int], Thumb], refused: set[int]
) -> None:
    for first, second in pairs.tolist():
        pair, roots = first << 32 | second, (groups.find(first), groups.find(second))
        if pair in refused or roots[0] == roots[1]:
            continue
        if all(same_subject(thumb_of(a), thumb_of(b)) for a, b in {(first, second), roots}):
            groups.join(first, second)
        elif len(refused) < _MAX_REFUSED:
            refused.add(pair)


def same_subject(first: Thumb, second: Thumb) -> bool:
    """Says whether two 16x16 RGB thumbnails can be of one picture: the check after near hashes."""
    a, b = (thumb.astype(np.int64) for thumb in (first, second))
    grey_a, grey_b = (image @ np.array([299, 587, 114]) // 1000 for image in (a, b))
    if min(_curvature(grey_a), _curvature(grey_b)) < SMOOTH_DETAIL and abs(a - b).mean() > MAX_COLOUR_DIFFERENCE:
        return False
    count = grey_a.size
    covariance = count * int((grey_a * grey_b).sum()) - int(grey_a.sum()) * int(grey_b.sum())
    spreads = [count * int((grey**2).sum()) - int(grey.sum()) ** 2 for grey in (grey_a, grey_b)]
    return bool(covariance > MIN_CORRELATION * math.sqrt(spreads[0] * spreads[1]))


def _curvature(grey: npt.NDArray[np.int64]) -> float:
    across, down = np.diff(grey, 2, axis=1), np.diff(grey, 2, axis=0)
    return float(abs(across).mean() + abs(down).mean()) / 2


def _distances(hashes: Hashes, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    distance = np.zeros(len(first), np.int64)
    for word in range(hashes.shape[1]):
        distance += np.bitwise_count(hashes[first, word] ^ hashes[second, word])
    return distance


def _bucketed(hashes: Hashes, bits: list[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Returns an order in which equal keys stand together, nearest hashes first, and the keys in it."""
    octets = hashes.view(np.uint8).reshape(len(hashes), 32)
    keys = np.zeros(len(hashes), np.uint32)
    for bit in bits:
        keys = keys << np.uint32(1) | octets[:, bit // 8] >> np.uint8(7 - bit % 8) & np.uint8(1)
    order = np.lexsort((hashes[:, 0], keys))
    return order, keys[order]


def _table_bits(table: int, count: int) -> list[int]:
    """Returns the hash bits that make a table's key: ``count`` of the 63 lowest frequencies (the steadiest
    bits), drawn by SHA-256 so that no library version changes the draw."""
    low = [row * _KEPT + column for row in range(8) for column in range(8)][1:]
    return sorted(low, key=lambda bit: hashlib.sha256(f"{table} {bit}".encode()).digest())[:count]


def number_groups(roots: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Returns (N,) groups numbered 0, 1, … by first appearance, for roots that are their group's lowest number."""
    return np.unique(roots, return_inverse=True)[1].astype(np.uint32)
