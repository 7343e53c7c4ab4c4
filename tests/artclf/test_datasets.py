"""Opening what a user names as data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from artclf.cache import cache_folder
from artclf.datasets import SAMPLE, open_dataset
from artclf.errors import ConfigError, Interrupted
from artclf.interrupt import StopRequest
from artclf.records import Dataset

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARTCLF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_prepared_folder_is_opened_where_it_lies(tiny_set: Dataset, fresh_cache: Path) -> None:
    assert open_dataset(str(tiny_set.folder)).folder == tiny_set.folder
    assert not fresh_cache.exists()


def test_pictures_are_prepared_once_and_reused(tiny_pictures: Path, tiny_set: Dataset) -> None:
    first = open_dataset(str(tiny_pictures))
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    again = open_dataset(str(tiny_pictures))
    assert first.digest == again.digest == tiny_set.digest
    assert (again.folder / "manifest.json").stat().st_mtime_ns == stamp


def test_pictures_that_changed_are_prepared_again(tiny_pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_pictures, tmp_path / "pictures")
    before = open_dataset(str(tmp_path / "pictures"))
    (tmp_path / "pictures" / "down" / "down_0.png").unlink()
    after = open_dataset(str(tmp_path / "pictures"))
    assert len(after) == len(before) - 1 and after.digest != before.digest


def test_the_sample_is_the_same_for_everyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for name in ("one", "other"):
        monkeypatch.setenv("ARTCLF_CACHE", str(tmp_path / name))
        digests.add(open_dataset(SAMPLE).digest)
    assert len(digests) == 1


def test_processes_that_need_the_same_pictures_at_once_prepare_them_once(tiny_pictures: Path, tmp_path: Path) -> None:
    program = f"from artclf.datasets import open_dataset; print(open_dataset({str(tiny_pictures)!r}).digest)"
    environment = {**os.environ, "ARTCLF_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", program]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0, 0]
    assert len(set(answers)) == 1


def test_preparing_for_a_run_can_be_stopped_and_goes_on(tiny_pictures: Path) -> None:
    stop = StopRequest()
    stop.reason = "SIGTERM"
    with pytest.raises(Interrupted):
        open_dataset(str(tiny_pictures), stop.check)
    assert len(open_dataset(str(tiny_pictures))) == 90


@pytest.mark.parametrize("uri", ["no/such/place", "s3://Bucket/set", "gopher://x"])
def test_what_is_not_there_or_cannot_be_opened_is_named(uri: str) -> None:
    with pytest.raises(
        ConfigError, match=r"no such data set|expected a folder of this machine|expected s3://BUCKET/PREFIX"
    ):
        open_dataset(uri)


def test_the_cache_can_be_put_elsewhere(fresh_cache: Path) -> None:
    assert cache_folder() == fresh_cache
