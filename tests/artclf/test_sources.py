from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from artclf.archives import open_zip
from artclf.errors import ConfigError, StorageError
from artclf.label_tables import read_labels
from artclf.layout import Layout
from artclf.prepare import Options, prepare
from artclf.records import Dataset
from artclf.sources import CannotRead, Sources
from tests.bad_sets import TWO, archive, classes, picture, write


def classes_of(dataset: Dataset) -> dict[str, int]:
    return {entry["slug"]: sum(entry["counts"].values()) for entry in dataset.manifest["classes"]}


def labels_of(names: Sequence[str]) -> dict[str, str | None]:
    layout = Layout()
    for name in names:
        layout.add(name)
    layout.settle()
    return {name: layout.label(name) for name in names}


def test_a_folder_per_class_names_the_class_not_the_file() -> None:
    labels = labels_of(["Titian/Rubens_1.jpg", "Titian/Rubens_2.jpg", "Rubens/x.jpg"])
    assert list(labels.values()) == ["Titian", "Titian", "Rubens"]


def test_flat_files_name_their_class() -> None:
    assert labels_of(["A_b_1.jpg", "C_2_7.jpg"]) == {"A_b_1.jpg": "A_b", "C_2_7.jpg": "C_2"}


def test_the_layout_of_the_kaggle_set_is_read_as_it_is() -> None:
    names = ["images/images/Titian/Titian_1.jpg", "images/images/El_Greco/El_Greco_1.jpg"]
    flat = ["resized/resized/Titian_1.jpg", "resized/resized/El_Greco_1.jpg"]
    assert list(labels_of(names + flat).values()) == ["Titian", "El_Greco"] * 2


def test_one_wrapped_folder_of_flat_files_is_flat() -> None:
    assert set(labels_of(["resized/resized/Titian_1.jpg", "resized/resized/El_Greco_1.jpg"]).values()) == {
        "Titian",
        "El_Greco",
    }


@pytest.mark.parametrize("split", ["train", "Training_Set", "validation", "test"])
def test_ready_made_splits_are_no_classes(split: str) -> None:
    assert labels_of([f"{split}/cat/1.jpg", f"{split}/dog/1.jpg"])[f"{split}/cat/1.jpg"] == "cat"
    assert labels_of([f"{split}/cat_1.jpg", f"{split}/dog_1.jpg"])[f"{split}/dog_1.jpg"] == "dog"


def test_subfolders_of_a_class_belong_to_it() -> None:
    assert labels_of(["Titian/1.jpg", "Titian/early/2.jpg", "Rubens/1.jpg"])["Titian/early/2.jpg"] == "Titian"


def test_flat_files_on_disk_make_classes(tmp_path: Path) -> None:
    flat = {f"{name}_{n}.png": picture(n + 50 * len(name)) for name in ("El_Greco", "Period_20") for n in range(5)}
    assert classes_of(prepare([str(write(tmp_path / "set", flat))], tmp_path / "out")) == {
        "El_Greco": 5,
        "Period_20": 5,
    }


def test_a_table_of_labels_decides_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {**classes("x", count=12), "stray.png": picture(900)})
    rows = [f"x/{n}.png,{'Ada' if n % 2 else 'Ben Zed'}" for n in range(12)]
    table = write(tmp_path, {"labels.csv": "\n".join(["file,label", *rows]).encode()}) / "labels.csv"
    dataset = prepare([str(folder)], tmp_path / "out", Options(labels=table))
    assert classes_of(dataset) == {"Ada": 6, "Ben_Zed": 6}
    assert dataset.manifest["counts"]["ignored"] == 1
    assert "1 pictures stand in no table of labels and were left out" in dataset.manifest["warnings"]


def test_a_table_can_be_the_source_and_name_files_without_their_folder(tmp_path: Path) -> None:
    rows = [f"{n}.png,{'Ada' if n % 2 else 'Ben'}" for n in range(10)]
    files = {f"pictures/{n}.png": picture(n) for n in range(10)}
    write(tmp_path / "set", {**files, "labels.csv": "\r\n".join(["Image,Artist", *rows]).encode()})
    assert classes_of(prepare([str(tmp_path / "set" / "labels.csv")], tmp_path / "out")) == {"Ada": 5, "Ben": 5}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("file,label\n../x.png,Ada\n", "row 2: expected a path below"),
        ("file,label\n/etc/passwd,Ada\n", "row 2: expected a path below"),
        ("file,label\nAda/0.png,Ada,more\n", "row 2: expected 2 cells"),
        ("file,label\nAda/0.png,\n", "row 2: .*empty cell"),
        ("file,lable\nAda/0.png,Ada\n", "column 'label'.*Did you mean label"),
        ("file,label\nAda/0.png,Ada\nAda/0.png,Ben\n", "two labels: 'Ada/0.png' in rows 2 and 3"),
        ("file,label\nAda/0.png,Ada\nnone.png,Ben\n", r"1 files that are not there: 'none.png' \(row 3\)"),
        ('file,label\n"Ada/0.png,Ada\n', "row 2: not readable as CSV"),
        ("", "found an empty file"),
        ("\0\0", "binary"),
    ],
)
def test_a_wrong_table_of_labels_stops_with_the_row(tmp_path: Path, table: str, problem: str) -> None:
    folder = write(tmp_path / "set", TWO)
    write(tmp_path, {"labels.csv": table.encode()})
    with pytest.raises(ConfigError, match=problem):
        prepare([str(folder)], tmp_path / "out", Options(labels=tmp_path / "labels.csv"))


def test_windows_paths_in_a_table_are_understood(tmp_path: Path) -> None:
    write(tmp_path, {"labels.csv": b"file,label\n.\\Ada\\0.png,Ada\n"})
    assert [row.file for row in read_labels(tmp_path / "labels.csv")] == ["Ada/0.png"]


def test_an_artists_table_beside_the_pictures_is_used(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {**TWO, "artists.csv": "name,years\nÁda,1900\nBen,1901\n".encode()})
    packed = write(tmp_path, {"set.zip": archive({**TWO, "artists.csv": (folder / "artists.csv").read_bytes()})})
    for source in (folder, packed / "set.zip"):
        dataset = prepare([str(source)], tmp_path / f"out of {source.name}")
        assert [(info.slug, info.display, info.about) for info in dataset.classes] == [
            ("Ada", "Áda", {"years": "1900"}),
            ("Ben", "Ben", {"years": "1901"}),
        ]


def test_a_damaged_entry_of_a_zip_is_skipped(tmp_path: Path) -> None:
    content = archive(classes("Ada", "Ben", count=40))
    at = content.index(b"\x89PNG", 5000) + 50
    write(tmp_path, {"set.zip": content[:at] + b"\0\0\0\0" + content[at + 4 :]})
    dataset = prepare([str(tmp_path / "set.zip")], tmp_path / "out", Options(max_bad=(0.1, 0.1)))
    assert dataset.manifest["counts"]["skipped"] == 1
    assert dataset.manifest["skipped"][0]["reason"].startswith("damaged in the archive")


def test_a_zip_with_a_name_twice_stops(tmp_path: Path) -> None:
    first, second = archive({"Ada/0.png": b"x"}), archive({"Ada/1.png": b"y"})
    (tmp_path / "twice.zip").write_bytes(archive({"Ada/0.png": b"x", "Ada/1.png": b"y"}).replace(b"1.png", b"0.png"))
    assert first != second
    with open(tmp_path / "twice.zip", "rb") as file, pytest.raises(ConfigError, match="twice"):
        open_zip(file, "twice.zip")


def test_archives_in_a_folder_are_asked_about_and_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {**TWO, "more.zip": archive(classes("Ada", "Ben", first_seed=300))})
    with pytest.raises(ConfigError, match=r"holds the archive 'more\.zip'"):
        prepare([str(folder)], tmp_path / "out")
    assert len(prepare([str(folder)], tmp_path / "out", Options(nested_zips=True))) == 24


def test_two_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    sources = [
        str(write(tmp_path / place / "set", classes(name, first_seed=seed)))
        for place, name, seed in (("a", "Ada", 0), ("b", "Ben", 100))
    ]
    assert prepare(sources, tmp_path / "out").manifest["sources"] == ["set", "set-2"]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("", "empty name"),
        ("s3://bucket/pictures", "expected a folder of this machine, received s3://"),
        ("file.bin", "received another file"),
    ],
)
def test_what_is_no_source_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, problem: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"file.bin": b"x"})
    with pytest.raises(ConfigError, match=problem):
        prepare([source], tmp_path / "out")


def test_a_prepared_data_set_is_no_source(tmp_path: Path) -> None:
    prepare([str(write(tmp_path / "set", TWO))], tmp_path / "out")
    with pytest.raises(ConfigError, match="prepared data set already"):
        prepare([str(tmp_path / "out")], tmp_path / "again")


def test_kaggle_without_its_client_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(ConfigError, match="pip install kagglehub"):
        prepare(["kaggle:owner/name"], tmp_path / "out")


def test_a_folder_that_cannot_be_listed_is_a_storage_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", TWO)
    with Sources([str(folder)], None, tmp_path) as sources, pytest.raises(StorageError, match="cannot list"):
        for _, entry in sources.entries():
            for other in {"Ada", "Ben"} - {entry.name.partition("/")[0]}:
                shutil.rmtree(folder / other, ignore_errors=True)


def test_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    with Sources([str(write(tmp_path / "set", TWO))], None, tmp_path) as sources, pytest.raises(CannotRead) as caught:
        sources.read(0, "Ada/none.png", 10)
    assert caught.value.reason == "gone since it was listed"
