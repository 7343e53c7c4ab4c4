"""Order, views and batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artclf.classes import choose_classes, class_weights
from artclf.config import DataConfig, MinImages, TopClasses
from artclf.data import Batches, epoch_order, evaluation_views, view
from artclf.errors import ConfigError, StorageError
from artclf.records import Dataset

SIZE = DataConfig(image_size=16)


@given(n=st.integers(1, 300), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 5000), crops=st.integers(1, 4))
def test_an_epoch_shows_every_picture_as_often_as_there_are_crops(n: int, seed: int, epoch: int, crops: int) -> None:
    order = epoch_order(np.zeros(n, np.int64), DataConfig(crops=crops), seed, epoch)
    assert np.bincount(order, minlength=n).tolist() == [crops] * n


@given(n=st.integers(50, 300), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 5000))
def test_the_order_is_a_pure_function_of_seed_and_epoch_and_differs_between_epochs(
    n: int, seed: int, epoch: int
) -> None:
    labels = np.zeros(n, np.int64)
    order = epoch_order(labels, SIZE, seed, epoch)
    assert np.array_equal(order, epoch_order(labels, SIZE, seed, epoch))
    assert not np.array_equal(order, epoch_order(labels, SIZE, seed, epoch + 1))


@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=6), seed=st.integers(0, 1000))
def test_the_balanced_sampler_shows_each_class_equally_often(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = epoch_order(labels, DataConfig(sampler="balanced"), seed, 0)
    shown = np.bincount(labels[order], minlength=len(counts))
    assert len(order) == len(labels)
    assert shown.max() <= -(-len(labels) // len(counts))


def test_batches_of_an_epoch_hold_every_picture_once_and_the_last_is_not_dropped(tiny_set: Dataset) -> None:
    split = choose_classes(tiny_set, SIZE).split(tiny_set, "train")
    batches = Batches(tiny_set, split, SIZE, batch_size=7)
    seen = list(batches.epoch(seed=3, epoch=1))
    assert len(seen) == batches.steps()
    assert sorted(np.concatenate([b.records for b in seen])) == sorted(split.records)
    assert all(b.images.dtype == np.uint8 and b.images.shape[1:] == (16, 16, 3) for b in seen)


@pytest.mark.parametrize("view_name", ["resize", "pad", "crop"])
def test_batches_do_not_depend_on_the_number_of_threads(tiny_set: Dataset, view_name: str) -> None:
    config = DataConfig.model_validate({"image_size": 16, "view": view_name, "crops": 2, "augment": {"flip": True}})
    split = choose_classes(tiny_set, config).split(tiny_set, "train")
    one, many = (list(Batches(tiny_set, split, config, 8, threads=n).epoch(5, 2)) for n in (1, 4))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(one, many, strict=True))


def test_an_epoch_begun_in_the_middle_goes_on_with_the_same_batches(tiny_set: Dataset) -> None:
    config = DataConfig.model_validate({"image_size": 16, "view": "crop", "augment": {"flip": True}})
    split = choose_classes(tiny_set, config).split(tiny_set, "train")
    batches = Batches(tiny_set, split, config, 8)
    whole, rest = list(batches.epoch(1, 4)), list(batches.epoch(1, 4, start=5))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(whole[5:], rest, strict=True))


def test_flipping_mirrors_about_half_of_the_pictures_and_no_other_change(tiny_set: Dataset) -> None:
    plain = DataConfig(image_size=16)
    flipped = DataConfig.model_validate({"image_size": 16, "augment": {"flip": True}})
    split = choose_classes(tiny_set, plain).split(tiny_set, "train")
    mirrored = 0
    for a, b in zip(
        Batches(tiny_set, split, plain, 8).epoch(0, 0), Batches(tiny_set, split, flipped, 8).epoch(0, 0), strict=True
    ):
        for before, after in zip(a.images, b.images, strict=True):
            same = np.array_equal(before, after)
            assert same or np.array_equal(before[:, ::-1], after)
            mirrored += not same
    assert 0.25 < mirrored / len(split) < 0.75


def test_leaving_an_epoch_early_leaves_no_thread_behind(tiny_set: Dataset) -> None:
    import threading

    split = choose_classes(tiny_set, SIZE).split(tiny_set, "train")
    before = threading.active_count()
    stream = Batches(tiny_set, split, SIZE, 4, threads=3).epoch(0, 0)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_evaluation_shows_every_picture_once_in_order(tiny_set: Dataset) -> None:
    split = choose_classes(tiny_set, SIZE).split(tiny_set, "val")
    records = np.concatenate([b.records for b in Batches(tiny_set, split, SIZE, 4).evaluation()])
    assert np.array_equal(records, split.records)


def test_evaluation_shows_all_crops_of_a_picture_one_after_the_other(tiny_set: Dataset) -> None:
    config = DataConfig(image_size=16, view="crop", crops=3)
    split = choose_classes(tiny_set, config).split(tiny_set, "val")
    batch = next(Batches(tiny_set, split, config, 12).evaluation())
    assert batch.images.shape == (12, 16, 16, 3)
    assert batch.labels.shape == (4,)


def test_a_damaged_record_stops_the_epoch_and_names_the_shard(tiny_set: Dataset, tmp_path: object) -> None:
    import shutil
    from pathlib import Path

    folder = Path(str(tmp_path)) / "set"
    shutil.copytree(tiny_set.folder, folder)
    shard = folder / "shards" / "00000.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    damaged = Dataset.open(folder)
    split = choose_classes(damaged, SIZE).split(damaged, "train")
    with pytest.raises(StorageError, match=r"00000\.bin.*damaged"):
        for name in ("train", "val", "test"):
            split = choose_classes(damaged, SIZE).split(damaged, name)
            list(Batches(damaged, split, SIZE, 8).epoch(0, 0))


# -- views ---------------------------------------------------------------------------------------


def picture(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(1, 256, size=(height, width, 3), dtype=np.uint8)


@given(height=st.integers(1, 90), width=st.integers(1, 90), name=st.sampled_from(["resize", "pad", "crop"]))
def test_every_view_of_every_picture_has_the_asked_size(height: int, width: int, name: str) -> None:
    config = DataConfig.model_validate({"image_size": 24, "view": name})
    seen = view(picture(height, width), config, np.random.default_rng(1))
    assert seen.shape == (24, 24, 3)
    assert seen.dtype == np.uint8


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    pixels = picture(24, 24)
    for name in ("resize", "pad", "crop"):
        config = DataConfig.model_validate({"image_size": 24, "view": name})
        assert np.array_equal(view(pixels, config, None), pixels)


def test_padding_keeps_the_proportions_between_black_bars() -> None:
    seen = view(np.full((20, 40, 3), 200, np.uint8), DataConfig(image_size=40, view="pad"), None)
    assert (seen[:10] == 0).all() and (seen[30:] == 0).all() and (seen[10:30] == 200).all()


def test_a_crop_shows_the_pictures_own_pixels() -> None:
    pixels = picture(50, 70)
    seen = view(pixels, DataConfig(image_size=16, view="crop"), np.random.default_rng(4))
    places = [
        (top, left)
        for top in range(35)
        for left in range(55)
        if np.array_equal(pixels[top : top + 16, left : left + 16], seen)
    ]
    assert len(places) == 1


def test_a_picture_smaller_than_the_crop_is_enlarged_to_fit() -> None:
    seen = view(np.full((5, 9, 3), 77, np.uint8), DataConfig(image_size=16, view="crop"), None)
    assert (seen == 77).all()


def test_the_crops_that_are_evaluated_are_always_the_same() -> None:
    config = DataConfig(image_size=16, view="crop", crops=4)
    first, again = (evaluation_views(picture(50, 70), config) for _ in range(2))
    assert first.shape == (4, 16, 16, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1])


# -- classes -------------------------------------------------------------------------------------


def test_classes_can_be_chosen_by_name_and_keep_the_order_of_the_data_set(tiny_set: Dataset) -> None:
    choice = choose_classes(tiny_set, DataConfig(classes=("slanted", "across")))
    assert [info.slug for info in choice.infos] == ["across", "slanted"]
    split = choice.split(tiny_set, "train")
    assert set(split.labels) == {0, 1}
    assert set(tiny_set.index["label"][split.records]) == {0, 2}


def test_top_classes_are_the_largest_ones(tiny_set: Dataset) -> None:
    assert len(choose_classes(tiny_set, DataConfig(classes=TopClasses(top=2))).infos) == 2


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("across", "dwon"), "no class 'dwon'. Did you mean down?"),
        (TopClasses(top=9), "at most the 3 classes"),
        (MinImages(min_images=1000), "leaves 0"),
    ],
)
def test_a_choice_of_classes_that_cannot_be_met_says_why(tiny_set: Dataset, classes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        choose_classes(tiny_set, DataConfig.model_construct(classes=classes))


def test_balanced_class_weights_are_total_over_classes_times_count() -> None:
    weights = class_weights(np.array([0, 0, 0, 1]), 2, "balanced")
    assert weights.tolist() == pytest.approx([4 / (2 * 3), 4 / (2 * 1)])
