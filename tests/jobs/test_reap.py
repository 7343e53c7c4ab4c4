"""jobs.reap: what it says of runs that change while it looks."""

from __future__ import annotations

import threading
from pathlib import Path

from artclf.rundir import RunDir, RunStatus
from jobs.backends import open_backend
from jobs.reap import leftovers
from jobs.study import Study


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
