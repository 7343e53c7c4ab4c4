"""The command lines as a tired person calls them: BAD_INPUTS' table "CLI and local state", by case id.

C15 to C18, the container's rows, are in tests/container; C03 (account and region) is in tests/jobs/test_sagemaker.py,
C04 (the clock) in tests/artclf/test_s3.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from artclf.records import Dataset
from jobs.grid import expand, load_grid
from jobs.study import Study

PROJECT = Path(__file__).resolve().parents[1]
TINY = [
    "--set",
    "model.name=cnn_tiny",
    "--set",
    "model.head=[4]",
    "--set",
    "data.image_size=16",
    "--set",
    "train.epochs=1",
]


def run(
    module: str, *arguments: object, cwd: Path = PROJECT, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Runs a command; an environment value of None takes the variable away."""
    changed = {**os.environ, "PYTHONPATH": str(PROJECT), **{k: v for k, v in environment.items() if v is not None}}
    for name in (name for name, value in environment.items() if value is None):
        changed.pop(name, None)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=changed, capture_output=True, text=True, check=False)


def refused(answer: subprocess.CompletedProcess[str], code: int, said: str) -> None:
    """Asserts an exit code and a short message without a traceback."""
    assert answer.returncode == code, answer.stdout + answer.stderr
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr and len(answer.stderr.splitlines()) <= 3


@pytest.fixture
def grid(tiny_set: Dataset, tmp_path: Path) -> Path:
    path = tmp_path / "g.yaml"
    path.write_text(f"study: g\ndataset: {tiny_set.folder}\nbase: {{model.name: cnn_tiny, train.epochs: 1}}\n")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Returns a folder on a disk of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_c01_local_training_needs_no_network_and_no_credentials(tiny_set: Dataset, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a network namespace")
    command = [sys.executable, "-m", "artclf.train", "--data", str(tiny_set.folder), "--run-dir", str(tmp_path / "r")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    answer = subprocess.run(
        ["unshare", "-rn", *command, *TINY], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("backend", ["ec2", "batch", "lokal"])
def test_c02_a_backend_that_is_not_there_is_refused_before_anything_starts(grid: Path, backend: str) -> None:
    root = grid.parent / "studies"
    refused(run("jobs", "submit", grid, "--backend", backend, "--root", root), 2, "no such backend in this version")
    refused(run("jobs", "submit", grid, "--root", "s3://bucket/x"), 2, "the backend local works in a folder")
    assert not root.exists()


def test_c05_an_output_that_is_a_file_is_refused_before_training(tiny_set: Dataset, grid: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(run("artclf.train", "--data", tiny_set.folder, "--run-dir", tmp_path / "file", *TINY), 2, "received a file")
    refused(run("jobs", "submit", grid, "--root", tmp_path / "file"), 2, "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_c05_a_full_disk_is_told_before_training_with_exit_code_5(
    tiny_set: Dataset, grid: Path, small_disk: Path
) -> None:
    (small_disk / "filler").write_bytes(b"x" * 250_000)
    for answer in (
        run("artclf.train", "--data", tiny_set.folder, "--run-dir", small_disk / "run", *TINY),
        run("jobs", "submit", grid, "--root", small_disk),
    ):
        refused(answer, 5, "No space left on device")


def test_a_disk_that_fills_up_during_training_ends_with_exit_code_5_and_names_the_path(
    tiny_set: Dataset, small_disk: Path
) -> None:
    answer = run("artclf.train", "--data", tiny_set.folder, "--run-dir", small_disk / "run", *TINY)
    refused(answer, 5, str(small_disk))


AWKWARD = ["-a b ünï-漢字 q'\"$(id);", "~" + "x" * 254]


@pytest.mark.parametrize("name", AWKWARD)
def test_c09_odd_folder_names_work_throughout(tiny_pictures: Path, tmp_path: Path, name: str) -> None:
    pictures, data, runs = (tmp_path / kind / name for kind in ("pictures", "data", "runs"))
    shutil.copytree(tiny_pictures, pictures)
    data.parent.mkdir()
    prepared = run("artclf.prepare", "--quiet", "--out", data, "--", pictures.name, cwd=pictures.parent)
    assert prepared.returncode == 0, prepared.stderr
    trained = run("artclf.train", "--data", data, f"--run-dir={runs}", *TINY)
    assert trained.returncode == 0, trained.stderr
    predicted = run("artclf.predict", runs, pictures / "down" / "down_1.png", "--json")
    assert json.loads(predicted.stdout)[0]["classes"], predicted.stderr


@pytest.mark.parametrize("home", [None, "/", "missing"])
def test_c10_a_home_that_is_missing_or_cannot_be_written_is_no_hindrance(
    tiny_pictures: Path, tmp_path: Path, home: str | None
) -> None:
    home = str(tmp_path / home) if home == "missing" else home
    answer = run(
        "artclf.train",
        "--data",
        tiny_pictures,
        "--run-dir",
        tmp_path / "run",
        *TINY,
        HOME=home,
        ARTCLF_CACHE=None,
        XDG_CACHE_HOME=None,
        TMPDIR=str(tmp_path),
    )
    assert answer.returncode == 0, answer.stderr
    assert list(tmp_path.glob("artclf-*/datasets/*/manifest.json"))


def test_c12_resuming_nothing_is_refused_with_exit_code_3(tiny_set: Dataset, tmp_path: Path) -> None:
    refused(run("artclf.train", "--run-dir", tmp_path / "none", "--resume"), 3, "--resume was given")
    told = run("artclf.train", "--data", tiny_set.folder, "--run-dir", tmp_path / "new", "--resume", *TINY)
    refused(told, 3, "no run began here")


def test_other_settings_on_a_run_directory_are_refused_with_the_difference(tiny_set: Dataset, tmp_path: Path) -> None:
    first = ["artclf.train", "--data", tiny_set.folder, "--run-dir", tmp_path / "run", *TINY]
    assert run(*map(str, first)).returncode == 0
    refused(run(*map(str, first), "--set", "train.seed=4"), 3, "train.seed was 0, now 4")


@pytest.mark.parametrize("lost", ["job.json", "config.json"])
def test_a_run_that_lost_a_file_is_refused_what_does_not_fit_its_commits_and_goes_on_with_what_does(
    tiny_set: Dataset, tmp_path: Path, lost: str
) -> None:
    folder = tmp_path / "run"
    first = ["artclf.train", "--data", tiny_set.folder, "--run-dir", folder, *TINY]
    assert run(*map(str, first)).returncode == 0
    (folder / "status.json").unlink()
    (folder / lost).unlink()
    wrong = ["--run-dir", folder] if lost == "job.json" else ["--run-dir", folder, "--data", tiny_set.folder]
    refused(run("artclf.train", *wrong), 3, "its commits belong to other settings or data: ")
    assert not (folder / lost).exists()
    again = run(*map(str, first))
    assert again.returncode == 0 and "going on after epoch 1 of 1" in again.stdout


def test_another_data_set_on_a_run_directory_is_refused_with_the_difference(
    tiny_set: Dataset, tiny_pictures: Path, tmp_path: Path
) -> None:
    pictures, data = tmp_path / "pictures", tmp_path / "data"
    shutil.copytree(tiny_pictures, pictures)
    assert run("artclf.prepare", pictures, "--out", data).returncode == 0
    assert run("artclf.train", "--data", data, "--run-dir", tmp_path / "run", *TINY).returncode == 0
    (pictures / "down" / "down_3.png").unlink()
    assert run("artclf.prepare", pictures, "--out", data, "--force").returncode == 0
    for more in ([], ["--data", data, *TINY]):
        told = run("artclf.train", "--run-dir", tmp_path / "run", *more)
        refused(told, 3, "it was 90 pictures of 3 classes (digest ")
        assert ", now 89 pictures of 3 classes (" in told.stderr


def test_a_submit_whose_output_nobody_reads_any_more_still_runs_its_trials(grid: Path) -> None:
    root = grid.parent / "studies"
    command = [sys.executable, "-m", "jobs", "submit", str(grid), "--root", str(root)]
    submit = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert submit.stdout is not None
    while not submit.stdout.readline().startswith("starts"):
        assert submit.poll() is None
    submit.stdout.close()  # as `| head` does
    submit.wait()
    assert [json.loads(path.read_text())["state"] for path in root.glob("g/runs/*/status.json")] == ["done"]


def test_c14_reap_removes_nothing_unless_told(tiny_set: Dataset, grid: Path) -> None:
    root = grid.parent / "studies"
    refused(run("jobs", "reap", grid, "--root", root), 2, "nothing was submitted yet")
    loaded = load_grid(grid)
    Study(root, "g").record(loaded, str(tiny_set.folder), tiny_set.digest, expand(loaded, tiny_set.digest))
    assert "Nothing was left behind" in run("jobs", "reap", grid, "--root", root).stdout
    old = root / "g" / "runs" / "00000000"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    shown = run("jobs", "reap", grid, "--root", root).stdout
    assert "unfinished run of an earlier grid" in shown and "Nothing was removed" in shown and old.exists()
    assert "Removed 1." in run("jobs", "reap", grid, "--root", root, "--yes").stdout and not old.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["artclf.train", "--set", "model.droput=0.5"], "Did you mean model.dropout?"),
        (["artclf.train", "--set", "model.dropout"], "expected key=value"),
        (["artclf.train", "--set", "train.learning_rate=fast"], "expected a number from 0 to 10"),
        (["artclf.train", "--data", "no/such/place"], "no such data set"),
        (["artclf.train", "--data", "s3://B/set"], "expected s3://BUCKET/PREFIX"),
        (["artclf.train", "--config", "no/such/file.json"], "expected a readable file of settings"),
        (["artclf.predict", "no/such/model", "x.jpg"], "expected a finished run"),
        (["artclf.evaluate", "no/such/model", "--data", "x"], "expected a finished run"),
        (["artclf.prepare", "no/such/pictures", "--out", "x"], "no such folder, zip or CSV"),
        (["artclf.prepare", "x", "--out", "y", "--threads", "-1"], "expected a whole number from 1"),
        (["jobs", "submit", "grids/demo.yaml", "--max-parallel", "0"], "expected a whole number from 1"),
        (["jobs", "submit", "no/such/grid.yaml"], "grid.yaml"),
        (["jobs", "logs", "grids/demo.yaml", "--root", "no/such"], "nothing was submitted yet"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_a_slip_gets_one_line_that_says_what_was_expected(arguments: list[str], said: str) -> None:
    answer = run(*arguments)
    assert answer.returncode == 2
    assert said in answer.stderr and "Traceback" not in answer.stderr


@pytest.mark.parametrize("module", ["artclf.train", "artclf.prepare", "artclf.predict", "artclf.evaluate", "jobs"])
def test_help_is_told_without_loading_anything_heavy(module: str) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--help']\n"
        f"try:\n    runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print('loaded', sorted({'tensorflow', 'keras', 'pandas', 'matplotlib', 'boto3', 'PIL'} & set(sys.modules)))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "usage:" in answer.stdout and "loaded []" in answer.stdout
