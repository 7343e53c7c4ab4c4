from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from artclf.duplicates import Groups, Signature, join_near_duplicates, number_groups, same_subject, signature
from tests.bad_sets import pixels

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def found(images: list[Pixels]) -> list[list[int]]:
    """Returns the groups of two and more among images."""
    marks = [signature(image) for image in images]
    members = np.array([number for number, mark in enumerate(marks) if mark.hash], np.int64)
    hashes = np.frombuffer(b"".join(mark.hash for mark in marks), np.uint64).reshape(-1, 4)
    groups = Groups(len(images))
    join_near_duplicates(groups, members, hashes, lambda number: thumb(marks[number]))
    roots = groups.roots().tolist()
    return [
        group for root in sorted(set(roots)) if len(group := [n for n, other in enumerate(roots) if other == root]) > 1
    ]


def thumb(mark: Signature) -> Pixels:
    return np.frombuffer(mark.thumb, np.uint8).reshape(16, 16, 3)


def changed(image: Pixels, how: str, tmp_path: Path) -> Pixels:
    shown = Image.fromarray(image)
    if how == "smaller":
        shown = shown.resize((50, 40))
    elif how == "re-encoded":
        shown.save(tmp_path / "x.jpg", quality=40)
        shown = Image.open(tmp_path / "x.jpg").convert("RGB")
    elif how == "darker":
        shown = shown.point(lambda value: value * 0.7)
    elif how == "grey":
        shown = shown.convert("L").convert("RGB")
    return np.asarray(shown)


@pytest.mark.parametrize("how", ["same", "smaller", "re-encoded", "darker", "grey"])
def test_changed_copies_are_found_among_many(how: str, tmp_path: Path) -> None:
    images = [pixels(seed, 128) for seed in range(120)]
    copies = [changed(image, how, tmp_path) for image in images[:30]]
    assert found(images + copies) == [[number, 120 + number] for number in range(30)]


def test_different_pictures_are_not_joined() -> None:
    assert found([pixels(seed) for seed in range(500)]) == []


def test_gradients_of_different_colours_are_different_pictures() -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    red, green = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    red[..., 0], green[..., 1] = ramp, ramp
    assert found([red, green]) == []
    assert found([red, red.copy()]) == [[0, 1]]


def test_pictures_of_one_colour_are_compared_with_nothing() -> None:
    mark = signature(np.full((9, 9, 3), 7, np.uint8))
    assert (mark.hash, mark.constant) == (b"", True)


def test_equal_pixels_of_another_shape_are_different_content() -> None:
    flat = np.arange(48, dtype=np.uint8)
    assert signature(flat.reshape(2, 8, 3)).pixels != signature(flat.reshape(8, 2, 3)).pixels


def test_the_hash_is_the_same_on_every_machine() -> None:
    image = (np.arange(64 * 64 * 3) * 7919 % 251).astype(np.uint8).reshape(64, 64, 3)
    assert signature(image).hash.hex() == "f7dab5dce21181cb06b28dcabab2d4ff5455824aabd391aadf7381a2ff530000"


def test_hundreds_of_like_pictures_are_one_group_in_bounded_work() -> None:
    random = np.random.default_rng(3)
    base = pixels(9)
    images = [np.clip(base + random.integers(-3, 4, base.shape), 0, 255).astype(np.uint8) for _ in range(300)]
    assert found(images) == [list(range(300))]


def test_thumbnails_of_one_outline_but_other_content_are_refused() -> None:
    assert same_subject(thumb(signature(pixels(1))), thumb(signature(pixels(1, 64))))
    assert not same_subject(thumb(signature(pixels(1))), thumb(signature(pixels(2))))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30), st.randoms())
def test_groups_do_not_depend_on_the_order_of_joins(pairs: list[tuple[int, int]], random: Any) -> None:
    def roots(order: list[tuple[int, int]]) -> list[int]:
        groups = Groups(20)
        for first, second in order:
            groups.join(first, second)
        return [int(root) for root in groups.roots()]

    shuffled = [pair[::-1] for pair in pairs]
    random.shuffle(shuffled)
    assert roots(pairs) == roots(shuffled)
    for first, second in pairs:
        assert roots(pairs)[first] == roots(pairs)[second]


def test_groups_are_numbered_by_first_appearance() -> None:
    assert number_groups(np.array([0, 1, 0, 3, 1])).tolist() == [0, 1, 0, 2, 1]


@pytest.mark.shared
def test_the_known_pairs_of_the_paintings_are_found(shared_data: Path) -> None:
    folder = shared_data / "paintings"
    pairs = [("Titian", 201, 202), ("Edgar_Degas", 359, 617), ("Vincent_van_Gogh", 107, 473), ("Rembrandt", 220, 73)]
    names = [f"{artist}/{artist}_{number}.jpg" for artist, *numbers in pairs for number in numbers]
    others = [f"Titian/{path.name}" for path in sorted((folder / "Titian").iterdir())[:60]]
    names += sorted(set(others) - set(names))
    images = [np.asarray(Image.open(folder / name).convert("RGB")) for name in names]
    groups = found(images)
    together = {pair for group in groups for pair in itertools.combinations(group, 2)}
    assert {(0, 1), (2, 3), (4, 5), (6, 7)} <= together
