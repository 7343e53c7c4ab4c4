"""jobs.reap: what it says of runs that change while it looks."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from artclf.rundir import RunDir, RunStatus
from artclf.s3 import UnfinishedUpload
from jobs.backends import open_backend
from jobs.reap import _is_old, leftovers
from jobs.study import Study


@pytest.mark.parametrize(
    ("hours", "is_old"), [(25, True), (23, False), (-100, False)], ids=["yesterday", "today", "a clock that is wrong"]
)
def test_an_upload_of_what_studies_share_is_left_behind_after_a_day(hours: float, is_old: bool) -> None:
    begun = datetime.now(UTC) - timedelta(hours=hours)
    assert _is_old(UnfinishedUpload("weights/x", "1", str(begun))) == is_old
    assert not _is_old(UnfinishedUpload("weights/x", "1", ""))


def test_a_trainer_at_work_may_write_its_files_while_reap_looks_at_them(tmp_path: Path) -> None:
    study, backend = Study(tmp_path, "little"), open_backend("local")
    run = study.run("01234567")
    run.path.mkdir(parents=True)
    is_over = threading.Event()

    def write() -> None:
        while not is_over.is_set():
            RunDir(run.path).write_status(RunStatus("running"))

    with run.locked():
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(300):
                (trainer,) = leftovers(study, set(), backend)
                assert trainer.what.startswith("trainer, process")
        finally:
            is_over.set()
            writer.join()
