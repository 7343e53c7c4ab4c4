"""The drill for real: the command as a user starts it, real submits, real signals, real trainers."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artclf.errors import ConfigError
from artclf.interrupt import StopRequest
from artclf.records import Dataset
from jobs.compare import compare
from jobs.drill import SLEEP_S, Kind, drill, plan_faults
from jobs.study import Study
from tests.little_grid import write_grid

PROJECT = Path(__file__).resolve().parents[2]
SEED = 83
"""Its first four faults are a kill of a trainer, a Ctrl-C, a sleep while loading and a power cut."""

seeds, counts, spans = st.integers(1, 99_999), st.integers(1, 200), st.floats(0, 1e6)


def two_trials(folder: Path, dataset: Dataset, epochs: int) -> Path:
    return write_grid(folder, dataset, "0, 1", epochs, batch_size=2)


def start(grid: Path, root: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs", "drill", str(grid), "--root", str(root), *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def at_work(root: Path) -> list[int]:
    """Returns the processes whose command line names a folder of the drill."""
    lines = {process.pid: " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])}
    return [process for process, line in lines.items() if f"{root}/drills/" in line]


# -- the plan of faults --------------------------------------------------------------------------


@given(seeds, counts, spans, spans)
def test_the_same_seed_gives_the_same_faults(seed: int, count: int, training_s: float, loading_s: float) -> None:
    assert plan_faults(seed, count, training_s, loading_s) == plan_faults(seed, count, training_s, loading_s)


@given(seeds, counts, spans, spans)
def test_every_fault_has_a_moment_a_victim_and_a_length_that_can_be(
    seed: int, count: int, training_s: float, loading_s: float
) -> None:
    faults = plan_faults(seed, count, training_s, loading_s)
    assert len(faults) == count
    for fault in faults:
        assert 0 <= fault.delay_s <= (2 * training_s if fault.loaded else loading_s)
        assert 0 <= fault.victim < 1
        assert SLEEP_S[0] <= fault.asleep_s <= SLEEP_S[1]


@given(seeds, counts, spans, spans)
def test_every_kind_comes_once_before_any_comes_again(
    seed: int, count: int, training_s: float, loading_s: float
) -> None:
    times = Counter(fault.kind for fault in plan_faults(seed, count, training_s, loading_s))
    each = [times[kind] for kind in Kind]
    assert max(each) - min(each) <= 1


@given(seeds, counts, st.floats(1, 1e6), st.floats(1, 100))
def test_a_quarter_strikes_while_loading_and_the_others_fit_into_the_training(
    seed: int, count: int, training_s: float, loading_s: float
) -> None:
    faults = plan_faults(seed, count, training_s, loading_s)
    later = [fault.delay_s for fault in faults if fault.loaded]
    assert len(faults) - len(later) == count // 4
    assert math.fsum(later) <= training_s * (1.6 if len(later) == 1 else 1.2)
    if len(later) > 8:
        assert math.fsum(later) >= 0.7 * training_s


def test_other_seeds_give_other_faults() -> None:
    assert len({tuple(plan_faults(seed, 8, 60.0, 8.0)) for seed in range(1, 101)}) == 100


# -- refused -------------------------------------------------------------------------------------


def test_another_backend_is_refused(tiny_set: Dataset, tmp_path: Path) -> None:
    grid, stop = two_trials(tmp_path, tiny_set, 1), StopRequest()
    with pytest.raises(ConfigError, match=r"--backend sagemaker: .*expected local"):
        drill(grid, tmp_path / "studies", "sagemaker", 1, 1, stop, print)
    assert not (tmp_path / "studies").exists()


def test_a_drill_whose_folder_something_is_at_work_in_is_refused_and_leaves_it(
    tiny_set: Dataset, tmp_path: Path
) -> None:
    grid, root = two_trials(tmp_path, tiny_set, 1), tmp_path / "studies"
    left = root / "drills" / "little" / "disturbed"
    (left / "little").mkdir(parents=True)
    idle = "import sys; sys.stdin.read()"  # it looks like a trainer of an earlier drill that was killed while asleep
    with subprocess.Popen(
        [sys.executable, "-c", idle, "-m", "artclf.train", "--run-dir", str(left / "little")], stdin=subprocess.PIPE
    ) as trainer:
        trainer.send_signal(signal.SIGSTOP)
        with pytest.raises(ConfigError, match=f"process {trainer.pid} is at work here"):
            drill(grid, root, "local", 1, 1, StopRequest(), print)
        assert trainer.stdin is not None
        trainer.stdin.close()  # it was woken, or it would not end
        assert trainer.wait() == 0
    assert (left / "little").is_dir()


# -- the whole of it -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drilled(tiny_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """Returns the root of a drill of two trials with four faults, what it printed, and its exit code."""
    folder = tmp_path_factory.mktemp("drill with a space")
    (folder / "studies" / "little").mkdir(parents=True)
    (folder / "studies" / "little" / "results.csv").write_text("mine\n")
    job = start(two_trials(folder, tiny_set, 60), folder / "studies", "--faults", 4, "--seed", SEED)
    printed, errors = job.communicate()
    return folder / "studies", printed + errors, job.returncode


def test_a_disturbed_grid_ends_like_the_undisturbed_one_and_the_drill_says_so(drilled: tuple[Path, str, int]) -> None:
    _, printed, code = drilled
    assert code == 0, printed
    lines = printed.splitlines()
    assert lines[0] == f"seed {SEED}: repeat these faults with --faults 4 --seed {SEED}"
    assert max(map(len, lines)) <= 80, printed
    words = " ".join(lines)
    assert "Both trials ended exactly once, with the same weights, metrics and predictions as without them." in words
    assert "fault 1/4: kill -9 of the trainer of " in words and "submit 2 goes on: " in words, printed


def test_the_study_itself_stays_untouched(drilled: tuple[Path, str, int]) -> None:
    root, _, _ = drilled
    assert sorted(path.name for path in root.iterdir()) == ["drills", "little"]
    assert [path.name for path in (root / "little").iterdir()] == ["results.csv"]
    assert (root / "little" / "results.csv").read_text() == "mine\n"


def test_nothing_is_at_work_after_a_drill(drilled: tuple[Path, str, int]) -> None:
    assert at_work(drilled[0]) == []


def test_a_repeated_drill_keeps_the_undisturbed_study_and_ctrl_c_ends_it(
    drilled: tuple[Path, str, int], tmp_path: Path
) -> None:
    root, before, _ = drilled
    shutil.copytree(root, tmp_path / "studies")
    models = {path: path.stat().st_mtime_ns for path in tmp_path.glob("studies/drills/little/undisturbed/**/*.keras")}
    printed = []
    with start(root.parent / "little.yaml", tmp_path / "studies", "--seed", 3) as job:
        assert job.stdout is not None
        for line in job.stdout:
            printed.append(line)
            if line.startswith("disturbed: "):
                job.send_signal(signal.SIGINT)
        assert job.wait() == 75
    assert "undisturbed: 2 trials, 2 done by an earlier drill\n" in printed
    took = [
        next(line.split("it took ")[1] for line in lines if "it took" in line)
        for lines in (before.splitlines(True), printed)
    ]
    assert took[0] == took[1]
    assert models and models == {path: path.stat().st_mtime_ns for path in models}
    assert at_work(tmp_path / "studies") == []


@pytest.fixture
def studies(drilled: tuple[Path, str, int], tmp_path: Path) -> tuple[Study, Study]:
    """Returns two equal studies, to be tampered with."""
    found = drilled[0] / "drills" / "little" / "undisturbed"
    for name in ("one", "other"):
        shutil.copytree(found, tmp_path / name)
    return Study(tmp_path / "one", "little"), Study(tmp_path / "other", "little")


def test_a_study_is_equal_to_its_copy(studies: tuple[Study, Study]) -> None:
    assert compare(*studies) == []


def test_times_and_rates_are_not_compared(studies: tuple[Study, Study]) -> None:
    run = studies[1].run(studies[1].trial_ids()[0])
    run.write_metrics([{**line, "seconds": 9e9, "images_per_second": 0.0} for line in run.read_metrics()])
    assert compare(*studies) == []


def test_another_metric_is_found_and_named(studies: tuple[Study, Study]) -> None:
    run = studies[1].run(studies[1].trial_ids()[0])
    lines = run.read_metrics()
    run.write_metrics([*lines[:2], {**lines[2], "val_loss": 7.5}, *lines[3:]])
    (difference,) = compare(*studies)
    assert difference.startswith(f"{run.path.name}/metrics.jsonl 3 val_loss: 7.5, undisturbed ")


def test_a_lost_epoch_is_found(studies: tuple[Study, Study]) -> None:
    run = studies[1].run(studies[1].trial_ids()[0])
    run.write_metrics(run.read_metrics()[:-1])
    (difference,) = compare(*studies)
    assert difference.startswith(f"{run.path.name}/metrics.jsonl 60: nothing, undisturbed ")


def test_another_score_is_found_and_named(studies: tuple[Study, Study]) -> None:
    run = studies[1].run(studies[1].trial_ids()[0])
    path = run.evaluation_json("test")
    path.write_text(json.dumps({**json.loads(path.read_text()), "macro_f1": 0.125}))
    (difference,) = compare(*studies)
    assert difference.startswith(f"{run.path.name}/evaluation/test.json macro_f1: 0.125, undisturbed ")


def test_another_prediction_is_found_and_named(studies: tuple[Study, Study]) -> None:
    run = studies[1].run(studies[1].trial_ids()[0])
    path = run.predictions_csv("val")
    path.write_bytes(path.read_bytes()[:-3] + b"#\r\n")
    (difference,) = compare(*studies)
    assert difference.startswith(f"{run.path.name}/evaluation/predictions_val.csv ") and "#" in difference


@pytest.mark.parametrize(("setting", "is_found"), [("weights", False), ("name", True)])
def test_where_the_first_weights_lay_is_not_compared_and_all_other_settings_are(
    studies: tuple[Study, Study], setting: str, is_found: bool
) -> None:
    run = studies[1].run(studies[1].trial_ids()[0])
    about = json.loads(run.model_json.read_text())
    about["settings"]["model"][setting] = "s3://elsewhere/weights.h5"
    run.model_json.write_text(json.dumps(about))
    assert (compare(*studies) != []) == is_found


def test_other_weights_are_found(studies: tuple[Study, Study]) -> None:
    run = studies[1].run(studies[1].trial_ids()[0])
    with zipfile.ZipFile(run.model) as file:
        members = {name: bytearray(file.read(name)) for name in file.namelist()}
    members["model.weights.h5"][5000] ^= 1
    with zipfile.ZipFile(run.model, "w") as file:
        for name, content in members.items():
            file.writestr(name, bytes(content))
    (difference,) = compare(*studies)
    assert difference.startswith(f"{run.path.name}/model.keras: ") and "at 5,000" in difference


def test_a_missing_file_and_a_damaged_one_are_found(studies: tuple[Study, Study]) -> None:
    run = studies[1].run(studies[1].trial_ids()[0])
    run.model_json.unlink()
    run.model.write_bytes(b"no zip")
    weights, model = compare(*studies)
    assert weights == f"{run.path.name}/model.keras: cannot be compared: File is not a zip file"
    assert model == f"{run.path.name}/model.json: missing"


def test_a_trial_that_ended_twice_is_found(studies: tuple[Study, Study]) -> None:
    run = studies[1].run(studies[1].trial_ids()[0])
    run.log.write_text(run.log.read_text() * 2)
    assert compare(*studies) == [f"{run.path.name}/log.txt: the trial ended 2 times"]


def test_another_row_of_results_is_found(studies: tuple[Study, Study]) -> None:
    path = studies[1].path / "results.csv"
    path.write_text(path.read_text().replace(",done,", ",failed,", 1))
    assert compare(*studies) == ["results.csv 1 state: failed, undisturbed done"]


# -- its own end ---------------------------------------------------------------------------------


def test_ctrl_c_ends_the_submit_under_way_and_says_how_to_go_on(tiny_set: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "studies"
    job = start(two_trials(tmp_path, tiny_set, 5000), root, "--seed", 5)
    study = Study(root / "drills" / "little" / "undisturbed", "little")
    while not any(study.run(trial_id).is_locked() for trial_id in study.trial_ids()):
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    printed, errors = job.communicate()
    assert job.returncode == 75, printed + errors
    assert f"--root {root} --faults 8 --seed 5" in errors and "Traceback" not in errors
    assert at_work(root) == []


def test_a_grid_that_does_not_end_well_by_itself_is_told_and_not_disturbed(tiny_set: Dataset, tmp_path: Path) -> None:
    grid = two_trials(tmp_path, tiny_set, 1)
    grid.write_text(grid.read_text().replace("train.seed: [0, 1]", "data.classes: [[across, nobody]]"))
    job = start(grid, tmp_path / "studies")
    printed, errors = job.communicate()
    assert job.returncode == 1, printed + errors
    assert "expected the grid to end well without faults" in errors and "nobody" in errors
    assert "disturbed: the same grid" not in printed
