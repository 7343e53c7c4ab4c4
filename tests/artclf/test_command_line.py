"""How a command ends, whatever becomes of its terminal, and how it hears signals meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
HEAD = """
import hashlib, os, signal, sys, threading
from artclf.command_line import run_command
from artclf.errors import ConfigError, DivergedError, Interrupted
from artclf.interrupt import StopRequest
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
def main(argv):
    %s
run_command(main)
"""


def start(body: str, **options: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEAD % body]
    kinds = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, cwd=PROJECT, text=True, **kinds)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("return 4", 4, ""),
        ("raise ConfigError('a.yaml:3: no such setting.')", 2, "error: a.yaml:3: no such setting.\n"),
        ("raise Interrupted('stopped by SIGTERM.')", 75, "stopped by SIGTERM.\n"),
        ("raise KeyboardInterrupt", 75, "interrupted: run the same command again and it goes on.\n"),
        ("raise OSError(28, 'No space left on device', '/x/y')", 5, "error: /x/y: cannot use: No space left on device"),
        ("raise BrokenPipeError", 1, ""),
    ],
)
def test_a_command_ends_with_its_code_and_one_line(body: str, code: int, said: str) -> None:
    printed, errors = (job := start(body)).communicate()
    assert job.returncode == code and printed == ""
    assert errors.startswith(said) and bool(errors) == bool(said) and "Traceback" not in errors


@pytest.mark.parametrize("body", ["raise DivergedError('the loss is not finite')", "print('x' * 100000); return 6"])
def test_a_terminal_that_is_gone_changes_no_exit_code(body: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as when Ctrl-C ended `| tee log` first
    job = start(body, stdout=writer, stderr=writer)
    os.close(writer)
    assert job.wait() in ((6,) if "raise" in body else (1, 6))


LONG_CALL = """
    stop = StopRequest.on_signals()
    print('ready', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2 ** 31 - 1)  # minutes in one call of C, as a long step would be
    return 0"""


def test_a_second_ctrl_c_ends_the_process_also_in_the_middle_of_a_long_call() -> None:
    job = start(LONG_CALL)
    assert job.stdout is not None and job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGINT)
    while job.poll() is None:  # the first alone would leave it in its call for minutes
        try:
            job.wait(0.05)
        except subprocess.TimeoutExpired:
            job.send_signal(signal.SIGINT)
    _, errors = job.communicate()
    assert job.returncode == 75 and "ended at once; what was committed before is saved" in errors


WAITS = """
    stop = StopRequest.on_signals()
    print('ready', flush=True)
    while not stop.requested: threading.Event().wait(0.01)
    for _ in range(20): threading.Event().wait(0.01)  # it saves
    print('saved', stop.reason, stop.seconds_left() is not None, flush=True)
    stop.check()"""


def test_a_closed_terminal_is_told_more_than_once_and_is_one_request() -> None:
    job = start(WAITS)
    assert job.stdout is not None and job.stdout.readline() == "ready\n"
    for _ in range(3):
        job.send_signal(signal.SIGHUP)
    printed, errors = job.communicate()
    assert (printed, job.returncode) == ("saved SIGHUP False\n", 75), errors


def test_sigterm_starts_the_clock_of_whoever_sent_it() -> None:
    job = start(WAITS)
    assert job.stdout is not None and job.stdout.readline() == "ready\n"
    job.terminate()
    assert job.communicate() == ("saved SIGTERM True\n", "stopped by SIGTERM. Start again and it goes on.\n")


def test_a_signal_while_python_ends_changes_no_exit_code() -> None:
    body = "import atexit; atexit.register(os.kill, os.getpid(), signal.SIGTERM); StopRequest.on_signals(); return 0"
    job = start(body)
    assert job.communicate() == ("", "")
    assert job.returncode == 0
