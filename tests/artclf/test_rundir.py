"""The run directory: each file read as it was written, and one trainer at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artclf.config import TrainConfig
from artclf.errors import ConfigError, StorageError
from artclf.rundir import STATES, RunDir, RunStatus, read_json, write_json

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "runs" / "3f9a1c2b")


STATUSES = st.builds(
    RunStatus,
    state=st.sampled_from(STATES),
    reason=st.text(max_size=50),
    epoch=st.integers(0, 1000),
    attempt=st.integers(1, 30),
    started=st.just("2026-01-02T03:04:05Z"),
    seconds=st.floats(0, 1e9),
)


@given(status=STATUSES)
def test_a_status_reads_back_as_it_was_written(status: RunStatus, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = RunDir(tmp_path_factory.getbasetemp() / "run")
    run.write_status(status)
    assert run.read_status() == status


def test_a_run_that_never_began_has_no_status_and_no_metrics(run: RunDir) -> None:
    assert run.read_status() is None
    assert run.read_metrics() == []
    assert not run.is_locked()


def test_a_field_that_a_later_version_added_is_passed_over(run: RunDir) -> None:
    write_json(run.status, {"state": "done", "epoch": 3, "new": 1})
    assert run.read_status() == RunStatus("done", epoch=3)


@pytest.mark.parametrize(
    "content",
    [
        '{"state": "unheard of"}',
        '{"state": "done", "seconds": NaN}',
        '{"state": "done", "seconds": 1e999}',
        '{"state": "done", "epoch": 1' + "0" * 400 + "}",
        "{}",
        "[1]",
        "null ",
        '"done"',
        "{",
        "",
    ],
)
def test_a_status_that_is_none_is_told_with_its_file(content: str, run: RunDir) -> None:
    run.path.mkdir(parents=True)
    run.status.write_text(content)
    if content.strip() == "null":
        assert run.read_status() is None
        return
    with pytest.raises(StorageError, match=r"status\.json"):
        run.read_status()


def test_the_config_reads_back(run: RunDir) -> None:
    config = TrainConfig.from_settings({"model.dropout": 0.5, "data.classes": ["Dürer", "素描"]})
    run.path.mkdir(parents=True)
    run.config.write_text(config.to_json(), encoding="utf-8")
    assert run.read_config() == config


def test_a_missing_or_wrong_config_is_told_with_its_file(run: RunDir) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: expected the run's settings, found no file"):
        run.read_config()
    write_json(run.config, {"model": {"dropout": 3}})
    with pytest.raises(ConfigError, match=r"config\.json: model\.dropout: expected a number"):
        run.read_config()
    write_json(run.config, [1])
    with pytest.raises(ConfigError, match="expected a mapping of settings"):
        run.read_config()


def test_metrics_read_back_and_replace_those_before(run: RunDir) -> None:
    run.write_metrics([{"epoch": 1, "loss": 9.0}])
    run.write_metrics([{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 1e-9}])
    assert run.read_metrics() == [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 1e-9}]


@pytest.mark.parametrize("torn", ['{"epoch": 2, "lo', '{"epoch": 2}', "\x00\x00", "é"])
def test_a_last_line_without_its_end_is_passed_over(torn: str, run: RunDir) -> None:
    run.write_metrics([{"epoch": 1}])
    with open(run.metrics, "ab") as file:
        file.write(torn.encode()[:-1] if torn == "é" else torn.encode())
    assert run.read_metrics() == [{"epoch": 1}]


def test_a_damaged_line_in_the_middle_is_told_with_its_file(run: RunDir) -> None:
    run.path.mkdir(parents=True)
    run.metrics.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl: expected one JSON object a line"):
        run.read_metrics()


def test_json_keeps_its_letters_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"name": "Dürer"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "name": "Dürer"\n}\n'
    assert read_json(tmp_path / "x.json") == {"name": "Dürer"}
    assert read_json(tmp_path / "none.json") is None


# -- the lock -------------------------------------------------------------------------------------


def start_trainer(run: RunDir) -> subprocess.Popen[str]:
    """Returns another process that holds the run directory until its stdin ends."""
    code = (
        "import sys; from pathlib import Path; from artclf.rundir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).locked():\n    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_who_is_at_work(run: RunDir) -> None:
    trainer = start_trainer(run)
    try:
        assert run.is_locked()
        assert run.lock_holder() == trainer.pid
        with pytest.raises(ConfigError, match=rf"another trainer is at work .*process {trainer.pid}"), run.locked():
            pass
    finally:
        trainer.communicate()
    assert not run.is_locked()


def test_the_lock_of_a_killed_process_is_free(run: RunDir) -> None:
    trainer = start_trainer(run)
    trainer.send_signal(signal.SIGKILL)
    trainer.communicate()
    assert not run.is_locked()
    with run.locked():
        assert run.is_locked()
    assert run.lock_holder() is None


def test_the_lock_is_released_when_its_block_fails(run: RunDir) -> None:
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    assert not run.is_locked()


def test_a_lock_left_with_odd_content_can_be_taken(run: RunDir) -> None:
    run.path.mkdir(parents=True)
    (run.path / ".lock").write_bytes(b"\xff not a number " * 10)
    with run.locked():
        assert run.is_locked()


def test_asking_whether_a_run_is_locked_leaves_no_trace(run: RunDir) -> None:
    assert not run.is_locked()
    assert not run.path.exists()


def test_every_path_lies_in_the_run_directory(run: RunDir) -> None:
    paths = [run.config, run.status, run.metrics, run.model, run.evaluation_json("val"), run.predictions_csv("test")]
    assert all(path.is_relative_to(run.path) for path in paths)
