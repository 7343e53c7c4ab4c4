"""The sample pictures: the same each time, all different, and told apart by strokes, not by colours."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from artclf.duplicates import MAX_DISTANCE, signature
from artclf.errors import ConfigError
from artclf.images import read_picture
from artclf.sample import PAINTERS, make_sample, paint
from artclf.storage import TEMPORARY

PER_CLASS = 40


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample") / "pictures", per_class=PER_CLASS)


@pytest.fixture(scope="module")
def pictures(sample: Path) -> list[npt.NDArray[np.uint8]]:
    """Returns all pictures, painter by painter."""
    return [
        read_picture((sample / painter.folder / f"{painter.folder}_{n}.jpg").read_bytes()).pixels
        for painter in PAINTERS
        for n in range(1, PER_CLASS + 1)
    ]


def test_each_painter_has_a_folder_of_numbered_pictures(sample: Path) -> None:
    assert {path.name for path in sample.iterdir()} == {painter.folder for painter in PAINTERS} | {"artists.csv"}
    for painter in PAINTERS:
        names = {path.name for path in (sample / painter.folder).iterdir()}
        assert names == {f"{painter.folder}_{n}.jpg" for n in range(1, PER_CLASS + 1)}


def test_every_picture_is_an_ordinary_jpeg(sample: Path) -> None:
    for file in sample.rglob("*.jpg"):
        picture = read_picture(file.read_bytes())
        assert (picture.format, picture.fixes, picture.pixels.shape) == ("JPEG", (), (96, 96, 3))


def test_the_list_of_artists_names_every_folder(sample: Path) -> None:
    with open(sample / "artists.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"].replace(" ", "_") for row in rows] == [painter.folder for painter in PAINTERS]
    assert all(row["years"] and row["genre"] and row["nationality"] for row in rows)


def test_one_name_has_an_accent_in_its_composed_form() -> None:
    accented = [painter.folder for painter in PAINTERS if not painter.folder.isascii()]
    assert accented
    assert all(name == unicodedata.normalize("NFC", name) for name in accented)


def test_the_same_seed_gives_the_same_bytes(sample: Path, tmp_path: Path) -> None:
    again = make_sample(tmp_path / "again", per_class=2)
    for file in again.rglob("*.jpg"):
        assert file.read_bytes() == (sample / file.relative_to(again)).read_bytes()


def test_another_seed_gives_other_pictures() -> None:
    assert not np.array_equal(np.asarray(paint(0, 1, seed=0)), np.asarray(paint(0, 1, seed=1)))


def test_a_sample_is_replaced_by_the_next(tmp_path: Path) -> None:
    make_sample(tmp_path / "pictures", per_class=2)
    make_sample(tmp_path / "pictures", per_class=1)
    assert len(list((tmp_path / "pictures").rglob("*.jpg"))) == len(PAINTERS)
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_anything_but_a_sample_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "artists.csv").write_text("precious")
    with pytest.raises(ConfigError, match="found something else"):
        make_sample(tmp_path, per_class=1)
    assert (tmp_path / "artists.csv").read_text() == "precious"


def test_no_two_pictures_are_near_duplicates(pictures: list[npt.NDArray[np.uint8]]) -> None:
    hashes = np.array([np.frombuffer(signature(pixels).hash, np.uint8) for pixels in pictures])
    bits = np.unpackbits(hashes, axis=1).astype(int)
    apart = (bits[:, None] != bits[None]).sum(axis=-1) + 256 * np.eye(len(bits), dtype=int)
    assert apart.min() > MAX_DISTANCE


def colour_accuracy(features: list[npt.NDArray[np.float64]]) -> float:
    labels = np.repeat(np.arange(len(PAINTERS)), PER_CLASS)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return float(cross_val_score(classifier, np.array(features), labels, cv=5).mean())


def test_mean_and_spread_of_colours_do_not_tell_the_painter(pictures: list[npt.NDArray[np.uint8]]) -> None:
    assert colour_accuracy([np.r_[p.mean(axis=(0, 1)), p.std(axis=(0, 1))] for p in pictures]) < 0.45


def test_a_histogram_of_colours_does_not_tell_the_painter(pictures: list[npt.NDArray[np.uint8]]) -> None:
    def histogram(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        counts, _ = np.histogramdd(pixels.reshape(-1, 3).astype(float), bins=4, range=[(0, 256)] * 3)
        return np.asarray(counts.ravel() / len(pixels) ** 2)

    assert colour_accuracy([histogram(p) for p in pictures]) < 0.55
