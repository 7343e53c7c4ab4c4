"""The data set on disk: every picture comes back as it was stored, or the damage is told."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artclf.errors import ConfigError, StorageError
from artclf.records import (
    FORMAT,
    INDEX_DTYPE,
    SPLITS,
    Dataset,
    dataset_digest,
    file_sha256,
    is_dataset,
    read_manifest,
    shard_name,
)

CLASSES = ["albrecht_durer", "edgar_degas"]
PICTURES = [f"picture {n} ".encode() * (n + 1) for n in range(20)]


def write_dataset(folder: Path, pictures: list[bytes], shards: int = 2) -> Path:
    """Writes a data set by the format's description alone: records dealt out to shards in turn."""
    contents = [b"" for _ in range(shards)]
    index = np.zeros(len(pictures), INDEX_DTYPE)
    for n, picture in enumerate(pictures):
        shard, label, split = n % shards, n % len(CLASSES), n % len(SPLITS)
        index[n] = (shard, len(contents[shard]), len(picture), zlib.crc32(picture), label, split, 8, 8, n)
        contents[shard] += picture
    (folder / "shards").mkdir(parents=True)
    for number, content in enumerate(contents):
        (folder / shard_name(number)).write_bytes(content)
    np.save(folder / "index.npy", index)
    with open(folder / "pictures.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["record", "name"], *([n, f"Dürer_{n}.jpg"] for n in range(len(pictures)))])
    manifest = {
        "format": FORMAT,
        "digest": "d" * 64,
        "classes": [{"slug": slug, "display": slug.title(), "about": None} for slug in CLASSES],
        "counts": {"used": len(pictures)},
        "shards": [
            {"name": shard_name(n), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for n, content in enumerate(contents)
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set", PICTURES)


@pytest.fixture
def dataset(folder: Path) -> Iterator[Dataset]:
    dataset = Dataset.open(folder)
    yield dataset


def test_every_record_comes_back_as_it_was_stored(dataset: Dataset) -> None:
    assert len(dataset) == len(PICTURES)
    assert [dataset.read(n) for n in range(len(PICTURES))] == PICTURES
    assert dataset.digest == "d" * 64
    assert [info.slug for info in dataset.classes] == CLASSES


@given(pictures=st.lists(st.binary(max_size=50), max_size=12), shards=st.integers(1, 4))
def test_any_bytes_come_back(pictures: list[bytes], shards: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sets")
    dataset = Dataset.open(write_dataset(folder, pictures, shards))
    try:
        assert [dataset.read(n) for n in range(len(pictures))] == pictures
    finally:
        shutil.rmtree(folder)


def test_threads_can_read_at_once(dataset: Dataset) -> None:
    order = np.random.default_rng(1).integers(0, len(PICTURES), 500).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(dataset.read, order)) == [PICTURES[n] for n in order]


def test_a_closed_data_set_opens_its_shards_again(dataset: Dataset) -> None:
    dataset.read(0)
    assert dataset.read(1) == PICTURES[1]


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_one_changed_bit_is_detected_in_its_record_and_no_other(bit: int, folder: Path) -> None:
    shard = folder / shard_name(1)
    content = bytearray(shard.read_bytes())
    place = len(PICTURES[1]) + 5  # within record 3, the second one of this shard
    content[place] ^= 1 << bit
    shard.write_bytes(content)
    dataset = Dataset.open(folder)
    with pytest.raises(StorageError, match=r"00001\.bin: record 3 is damaged .*Run prepare again"):
        dataset.read(3)
    assert [dataset.read(n) for n in (1, 5)] == [PICTURES[1], PICTURES[5]]


def test_a_missing_shard_is_told_on_opening(folder: Path) -> None:
    (folder / shard_name(1)).unlink()
    with pytest.raises(StorageError, match=r"00001\.bin: expected [\d,]+ bytes, found no file"):
        Dataset.open(folder)


def test_a_shard_cut_short_is_told_on_opening(folder: Path) -> None:
    shard = folder / shard_name(0)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"00000\.bin: expected .* bytes, found"):
        Dataset.open(folder)


def test_a_shard_that_vanishes_later_is_told_on_reading(dataset: Dataset) -> None:
    (dataset.folder / shard_name(0)).unlink()
    with pytest.raises(StorageError, match=r"00000\.bin: cannot read"):
        dataset.read(0)


def test_an_index_that_is_missing_damaged_or_of_another_set_is_told(folder: Path) -> None:
    index = folder / "index.npy"
    whole = index.read_bytes()
    np.save(index, np.load(index)[:-1])
    with pytest.raises(StorageError, match=r"index\.npy: does not belong to manifest\.json"):
        Dataset.open(folder)
    for damaged in (whole[:-10], b"", b"not numpy at all"):
        index.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"index\.npy: not readable"):
            Dataset.open(folder)
    index.unlink()
    with pytest.raises(StorageError, match=r"index\.npy: not readable"):
        Dataset.open(folder)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no prepared data set here .*python -m artclf\.prepare"):
        Dataset.open(tmp_path)
    assert not is_dataset(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "artclf-dataset/9"}', '{"format": null}', "3"])
def test_a_manifest_of_another_kind_is_refused(content: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        read_manifest(folder)
    assert not is_dataset(folder)


def test_a_manifest_that_lacks_a_part_is_told(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "classes": []}))
    with pytest.raises(StorageError, match="lacks counts, digest, shards"):
        Dataset.open(folder)


@pytest.mark.parametrize("part", ["classes", "counts", "digest", "shards", "files"])
@pytest.mark.parametrize("value", [None, 7, "x", [], {}, [7], [{}], {"x": 7}, {"used": -1}], ids=repr)
def test_a_manifest_with_a_value_of_another_kind_is_refused_in_words(folder: Path, part: str, value: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, part: value}))
    with contextlib.suppress(ConfigError, StorageError):  # any other error is one too many
        Dataset.open(folder)


def test_a_split_is_selected_in_order_and_by_label(dataset: Dataset) -> None:
    assert dataset.select("val").tolist() == [1, 4, 7, 10, 13, 16, 19]
    assert dataset.select("val", np.array([1])).tolist() == [1, 7, 13, 19]
    splits = np.concatenate([dataset.select(split) for split in SPLITS])
    assert sorted(splits.tolist()) == list(range(len(PICTURES)))


def test_names_come_in_the_order_asked(dataset: Dataset) -> None:
    assert dataset.names(np.array([7, 0, 7])) == ["Dürer_7.jpg", "Dürer_0.jpg", "Dürer_7.jpg"]


def test_a_moved_data_set_is_the_same(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "andere Stelle")
    dataset = Dataset.open(moved)
    assert dataset.read(7) == PICTURES[7]


ROWS = [("a" * 64, 0, 0), ("b" * 64, 1, 2)]


@pytest.mark.parametrize(
    ("classes", "rows"),
    [
        (["x", "z"], ROWS),
        (["y", "x"], ROWS),
        (["x", "y"], ROWS[::-1]),
        (["x", "y"], ROWS[:1]),
        (["x", "y"], [ROWS[0], ("b" * 64, 1, 1)]),
        (["x", "y"], [ROWS[0], ("b" * 64, 0, 2)]),
        (["x", "y"], [ROWS[0], ("c" * 64, 1, 2)]),
    ],
)
def test_the_digest_changes_with_classes_order_labels_splits_and_content(
    classes: list[str], rows: list[tuple[str, int, int]]
) -> None:
    assert dataset_digest(["x", "y"], iter(ROWS)) == dataset_digest(["x", "y"], ROWS)
    assert dataset_digest(classes, rows) != dataset_digest(["x", "y"], ROWS)


def test_the_hash_of_a_file_is_its_sha256_and_a_missing_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(StorageError, match="cannot read"):
        file_sha256(tmp_path / "b")
