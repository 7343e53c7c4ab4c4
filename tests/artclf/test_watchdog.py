"""What is a hang, and what is only a slow step or a laptop that slept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from artclf.watchdog import LEAST_S, Watchdog

PROJECT = Path(__file__).resolve().parents[2]


class Alarm:
    """Notes the silence it was called with."""

    def __init__(self) -> None:
        self.silent_s = 0.0

    def __call__(self, silent_s: float) -> None:
        self.silent_s = silent_s


def test_five_minutes_of_silence_are_a_hang_and_less_is_none() -> None:
    alarm = Alarm()
    watchdog = Watchdog(alarm)
    for _ in range(int(LEAST_S)):
        watchdog.passed(1)
    assert alarm.silent_s == 0
    watchdog.passed(1)
    assert alarm.silent_s == LEAST_S + 1


def test_a_beat_ends_the_silence() -> None:
    alarm = Alarm()
    watchdog = Watchdog(alarm)
    for _ in range(3):
        for _ in range(200):
            watchdog.passed(1)
        watchdog.beat()
    assert alarm.silent_s == 0


def test_sleep_is_no_hang_however_long() -> None:
    alarm = Alarm()
    watchdog = Watchdog(alarm)
    watchdog.passed(8 * 3600)
    assert alarm.silent_s == 0


def test_steps_that_take_long_by_nature_get_ten_times_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: moment[0])
    watchdog = Watchdog(Alarm())
    for _ in range(20):
        moment[0] += 60
        watchdog.beat()
    assert watchdog.limit_s() == 600


def test_last_words_are_written_and_one_that_hangs_too_does_not_keep_the_process(tmp_path: Path) -> None:
    program = (
        "import threading, pathlib, artclf.watchdog as w\n"
        "from artclf.errors import HungError\n"
        "w._LAST_WORD_S = 0.1\n"
        f"written = pathlib.Path({str(tmp_path / 'stacks')!r})\n"
        "w.leave_at_once(HungError('no step ended'), [threading.Event().wait, lambda: w.dump_stacks(written)])\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert answer.returncode == 7
    assert answer.stderr.endswith("error: no step ended\n")
    assert "most recent call first" in (tmp_path / "stacks").read_text()
