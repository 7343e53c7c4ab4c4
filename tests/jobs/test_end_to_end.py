"""Grid to report with the real launcher, the real entry point and the real trainer, each a real process."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from artclf.records import Dataset
from artclf.rundir import RunDir
from tests.little_grid import write_grid

PROJECT = Path(__file__).resolve().parents[2]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "jobs", *map(str, arguments)]


def jobs(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=PROJECT, capture_output=True, text=True, check=False)


def results(study: Path) -> list[dict[str, str]]:
    with open(study / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def times_finished(study: Path) -> dict[str, int]:
    """Returns how often each run came to its end, by its own log."""
    return {log.parent.name: log.read_text().count("done in") for log in study.glob("runs/*/log.txt")}


def changed(root: Path) -> dict[Path, int]:
    """Returns when each file but the locks was last written."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("[!.]*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tiny_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns the grid and the root of a study of two trials that has ended."""
    folder = tmp_path_factory.mktemp("study with a space")
    grid = write_grid(folder, tiny_set, "0, 1")
    answer = jobs("submit", grid, "--root", folder / "studies")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return grid, folder / "studies"


def test_a_submitted_grid_ends_with_results_report_and_best_model(finished: tuple[Path, Path]) -> None:
    study = finished[1] / "little"
    assert [row["state"] for row in results(study)] == ["done", "done"]
    assert all(0 <= float(row["test_accuracy"]) <= 1 for row in results(study))
    assert "<html" in (study / "report.html").read_text() and (study / "report.md").exists()
    assert all(json.loads(job.read_text())["max_hours"] == 24 for job in study.glob("runs/*/job.json"))
    assert (study / "best" / "model.keras").exists() and (study / "best" / "model.json").exists()


def test_submitting_again_starts_nothing_says_so_and_loads_no_tensorflow(finished: tuple[Path, Path]) -> None:
    grid, root = finished
    before = changed(root)
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['jobs', 'submit', {str(grid)!r}, '--root', {str(root)!r}]\n"
        "try:\n    runpy.run_module('jobs', run_name='__main__')\n"
        "except SystemExit as end:\n    print('code', end.code)\n"
        "print('loaded', sorted({'tensorflow', 'keras', 'boto3', 'matplotlib', 'pandas'} & set(sys.modules)))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "Nothing to start: all 2 trials have ended." in answer.stdout
    assert "code 0" in answer.stdout and "loaded []" in answer.stdout
    assert changed(root) == before


def test_plan_tells_what_a_submit_would_do_as_text_and_as_json(finished: tuple[Path, Path], tiny_set: Dataset) -> None:
    grid, root = finished
    assert "skip: done" in jobs("plan", grid, "--root", root).stdout
    fresh = json.loads(jobs("plan", grid, "--root", root / "elsewhere", "--json", "--requests").stdout)
    assert [item["action"] for item in fresh] == ["start", "start"]
    assert fresh[0]["request"]["command"][1:3] == ["-m", "container.entrypoint"]
    assert not (root / "elsewhere").exists()


def test_status_fits_80_columns_and_counts_what_is_done(finished: tuple[Path, Path]) -> None:
    grid, root = finished
    printed = jobs("status", grid, "--root", root).stdout
    assert "done 2/2" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_logs_prints_the_lines_of_each_epoch(finished: tuple[Path, Path]) -> None:
    grid, root = finished
    trial = results(root / "little")[0]["trial_id"]
    printed = jobs("logs", grid, trial[:4], "--root", root).stdout
    assert "epoch 1/2" in printed and "epoch 2/2" in printed


def test_adding_a_value_to_an_axis_starts_only_the_new_trial(tiny_set: Dataset, finished: tuple[Path, Path]) -> None:
    _, root = finished
    before = times_finished(root / "little")
    grown = write_grid(root / "grown", tiny_set, "0, 1, 2")
    answer = jobs("submit", grown, "--root", root)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    after = times_finished(root / "little")
    assert before.items() < after.items() and set(after.values()) == {1}
    assert len(results(root / "little")) == 3


def wait_until(condition: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    """Waits for the processes under test to get somewhere; they pace it, not a guess at their speed."""
    while not condition():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.02)


def start(grid: Path, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("submit", grid, "--root", root),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def epochs(study: Path) -> dict[str, int]:
    return {run.name: len(RunDir(run).read_metrics()) for run in study.glob("runs/*")}


def test_killed_with_all_children_in_mid_grid_every_trial_still_ends_done_exactly_once(
    tiny_set: Dataset, tmp_path: Path
) -> None:
    grid = write_grid(tmp_path, tiny_set, "0, 1", epochs=20, batch_size=2)
    study = tmp_path / "studies" / "little"
    for saved in (1, 3):
        job = start(grid, tmp_path / "studies")
        wait_until(lambda saved=saved: max(epochs(study).values(), default=0) >= saved, job)  # type: ignore[misc]
        for process in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # git, asked for the commit, ends by itself
                process.kill()
        job.communicate()
        kept = epochs(study)
    answer = jobs("submit", grid, "--root", tmp_path / "studies")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert set(times_finished(study).values()) == {1} and len(times_finished(study)) == 2
    assert all(epochs(study)[run] == 20 for run in kept)
    for run, count in kept.items():
        log = (study / "runs" / run / "log.txt").read_text()
        assert count == 0 or "going on " in log


def test_ctrl_c_lets_the_running_trials_save_and_says_how_to_go_on(tiny_set: Dataset, tmp_path: Path) -> None:
    grid = write_grid(tmp_path, tiny_set, "0, 1, 2", epochs=2000)
    study = tmp_path / "studies" / "little"
    job = start(grid, tmp_path / "studies")
    wait_until(lambda: max(epochs(study).values(), default=0) >= 1, job)
    job.send_signal(signal.SIGINT)
    printed, _ = job.communicate()
    assert job.returncode == 75
    assert "Run the same submit again and it goes on." in printed and "Traceback" not in printed
    states = [json.loads(path.read_text())["state"] for path in study.glob("runs/*/status.json")]
    assert states == ["interrupted"] * len(states) and states


def test_a_trainer_that_outlived_its_submitter_is_waited_for_or_stopped(tiny_set: Dataset, tmp_path: Path) -> None:
    grid = write_grid(tmp_path, tiny_set, "0", epochs=2000)
    study = tmp_path / "studies" / "little"
    job = start(grid, tmp_path / "studies")
    wait_until(lambda: max(epochs(study).values(), default=0) >= 1, job)
    job.kill()
    job.communicate()
    (run,) = map(RunDir, study.glob("runs/*"))
    trainer = run.lock_holder()
    assert trainer is not None
    assert "running" in jobs("plan", grid, "--root", tmp_path / "studies").stdout
    assert "trainer, process" in jobs("reap", grid, "--root", tmp_path / "studies").stdout
    assert "interrupted" in jobs("stop", grid, "--root", tmp_path / "studies").stdout
    assert "Nothing is running" in jobs("stop", grid, "--root", tmp_path / "studies").stdout
    assert not run.is_locked()
    with pytest.raises(ProcessLookupError):
        while True:  # it has saved and let go of the run; now it ends
            os.kill(trainer, 0)


def test_a_job_whose_submitter_was_killed_before_it_could_record_it_is_known_all_the_same(
    tiny_set: Dataset, tmp_path: Path
) -> None:
    grid = write_grid(tmp_path, tiny_set, "0", epochs=2000)
    study = tmp_path / "studies" / "little"
    program = (
        "import os, signal, sys\n"
        "import jobs.backends.local as local, jobs.__main__ as main\n"
        "start = local.LocalBackend.submit\n"
        "def killed(self, spec):\n    start(self, spec)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "local.LocalBackend.submit = killed\n"
        f"main.main(['submit', {str(grid)!r}, '--root', {str(tmp_path / 'studies')!r}])\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, check=False).returncode == -9
    )
    assert '"remote_id": ""' in next(study.glob("jobs/*.json")).read_text()
    assert "running" in jobs("status", grid, "--root", tmp_path / "studies").stdout
    assert "running" in jobs("plan", grid, "--root", tmp_path / "studies").stdout
    assert "Asked 1 running trial" in jobs("stop", grid, "--root", tmp_path / "studies").stdout


def test_a_failed_trial_is_told_and_the_exit_code_says_so(tiny_set: Dataset, tmp_path: Path) -> None:
    grid = write_grid(tmp_path, tiny_set, "0")
    grid.write_text(grid.read_text().replace("train.seed: [0]", "train.learning_rate: [0.001, 10.0]") + "\n")
    text = (
        grid.read_text().replace("head: [8]", "head: [8], l2: 10.0").replace("epochs: 2", "epochs: 40, optimizer: sgd")
    )
    grid.write_text(text)
    answer = jobs("submit", grid, "--root", tmp_path / "studies")
    assert answer.returncode == 1
    assert "diverged" in answer.stdout and "1 of 2 trials diverged" in answer.stdout
    rows = {row["train.learning_rate"]: row["state"] for row in results(tmp_path / "studies" / "little")}
    assert rows["10.0"] == "diverged"
