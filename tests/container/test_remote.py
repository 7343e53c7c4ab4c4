"""Runs that lie in a bucket: brought here, trained, brought back, by the real entry point against a real S3 server."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from artclf.checkpoint import Checkpoints, LocalGenerations
from artclf.errors import ConfigError, ResumeError, StorageError
from artclf.rundir import RunDir, RunStatus
from artclf.s3 import S3Storage
from container.generations import BucketGenerations
from container.lease import LIFE_S, Lease, LeaseLost
from container.remote import RemoteRun
from tests.conftest import PROJECT, Amount, Measured
from tests.container.conftest import Remote
from tests.s3_proxy import FaultProxy, Meanwhile

if TYPE_CHECKING:
    from tests.s3_servers import S3Server


def kill(job: subprocess.Popen[str]) -> None:
    """Takes the machine away: the entry point and its trainer in one moment."""
    import psutil

    processes = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    for act in (psutil.Process.suspend, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                act(process)


def committed_beyond(remote: Remote, job: subprocess.Popen[str], number: int) -> bool:
    """Waits until a later generation than that is in the bucket; returns False where the job ended before."""
    while job.poll() is None:
        if max(remote.committed(), default=0) > number:
            return True
    return False


def test_a_run_in_a_bucket_stopped_and_killed_ends_with_the_bits_of_one_that_was_not(
    put_run: Any, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    whole = put_run("whole")
    output, _ = (job := whole.start()).communicate()
    assert job.returncode == 0, output
    (tmp_path / "whole").mkdir()
    expected = whole.result(tmp_path / "whole")

    runs = deaths = 0
    while deaths < amount(3, 20):
        broken = put_run(f"broken-{runs}")
        while broken.status().get("state") != "done":
            job = broken.start()
            if committed_beyond(broken, job, max(broken.committed(), default=0) + deaths % 3):
                if deaths % 2:
                    job.send_signal(signal.SIGTERM)
                else:
                    kill(job)
                deaths += 1
            output, _ = job.communicate()
            assert job.returncode in (0, 75, -signal.SIGKILL) and "Traceback" not in output, output
            assert broken.metrics() == expected[-1][: len(broken.metrics())]
        (tmp_path / f"{runs}").mkdir()
        assert broken.result(tmp_path / f"{runs}") == expected
        runs += 1
    measured(f"{runs} runs in a bucket, {deaths} times stopped or killed: weights, predictions and metrics equal")


def test_whoever_reads_that_a_run_is_done_finds_all_that_it_leaves(
    put_run: Any, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, seen = put_run("run", **{"train.epochs": 1}), list[tuple[str, set[str]]]()

    def look() -> None:
        there = set(remote.storage.list())
        seen.append((remote.status().get("state", ""), there))

    look()
    with FaultProxy(moto_server.url, moto_server.credentials) as proxy:
        proxy.on(do=Meanwhile(look), times=None)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        output, _ = (job := remote.start()).communicate()
    assert job.returncode == 0, output
    left = {path.as_posix() for path in RunDir(Path()).left_when_done()}
    found = [left <= there for state, there in seen if state == "done"]
    assert found and all(found)
    assert json.loads(remote.storage.read("lease.json"))["holder"] == ""


def test_a_job_of_a_run_that_nobody_submitted_ends_with_exit_code_2(bucket: S3Storage, tmp_path: Path) -> None:
    remote = Remote(bucket.below("runs/none"), tmp_path)
    output, _ = (job := remote.start()).communicate()
    assert job.returncode == 2
    assert "expected a run with config.json and job.json; submit writes them" in output and "Traceback" not in output


def commit(folder: Path, count: int) -> LocalGenerations:
    store = LocalGenerations(folder)
    for number in range(count):
        Checkpoints(store).commit({"epoch": number}, {"weights": {"0": np.arange(50.0) + number}})
    return store


def put_all(generations: BucketGenerations, store: LocalGenerations) -> None:
    for number in store.numbers():
        generations.put(number, store.fetch(number))


def test_two_generations_are_kept_and_the_newest_sound_one_comes_back(bucket: S3Storage, tmp_path: Path) -> None:
    generations = BucketGenerations(bucket)
    for count in (1, 2, 3):
        put_all_new = commit(tmp_path / str(count), count)
        generations.put(count, put_all_new.fetch(count))
    assert generations.numbers() == [2, 3]
    assert generations.fetch_newest_sound(tmp_path / "back") == (3, [])
    assert Checkpoints(LocalGenerations(tmp_path / "back")).restore()[0].number == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("gen-000002/weights.npz", None),
        ("gen-000002/weights.npz", b"short"),
        ("gen-000002/manifest.json", b""),
        ("gen-000002/manifest.json", b"{}"),
        ("gen-000002/manifest.json", b"x" * 50_000_000),
        ("gen-000002/state.json", b"[]"),
    ],
    ids=["S01 missing", "S03 size", "S03 empty", "S03 not ours", "S03 50 MB", "S03 hash"],
)
def test_s01_s03_a_damaged_generation_is_marked_and_kept_and_the_older_one_is_used(
    bucket: S3Storage, tmp_path: Path, key: str, content: bytes | None
) -> None:
    generations = BucketGenerations(bucket)
    put_all(generations, commit(tmp_path / "here", 2))
    if content is None:
        bucket.delete(key)
    else:
        bucket.write(key, content)
    number, problems = generations.fetch_newest_sound(tmp_path / "back")
    assert number == 1 and len(problems) == 1 and "gen-000002" in problems[0]
    assert generations.numbers() == [1] and "gen-000002/BAD" in set(bucket.list())
    assert not (tmp_path / "back" / "gen-000002").exists()


def test_s02_files_without_a_manifest_are_never_used(bucket: S3Storage, tmp_path: Path) -> None:
    generations = BucketGenerations(bucket)
    put_all(generations, commit(tmp_path / "here", 1))
    bucket.write("gen-000002/weights.npz", b"unfinished")
    assert generations.fetch_newest_sound(tmp_path / "back")[0] == 1


def test_s04_of_two_committed_generations_the_higher_number_is_used(bucket: S3Storage, tmp_path: Path) -> None:
    generations = BucketGenerations(bucket)
    store = commit(tmp_path / "here", 2)
    for number in (2, 1):  # also where the older one came later
        generations.put(number, store.fetch(number))
    assert generations.fetch_newest_sound(tmp_path / "back")[0] == 2


def test_s16_what_sagemakers_agent_leaves_beside_the_files_is_ignored(bucket: S3Storage, tmp_path: Path) -> None:
    generations = BucketGenerations(bucket)
    put_all(generations, commit(tmp_path / "here", 1))
    for marker in ("uploading", "uploaded", "ignore"):
        bucket.write(f"gen-000001/weights.npz.sagemaker-{marker}", b"")
    assert generations.fetch_newest_sound(tmp_path / "back") == (1, [])
    assert not list((tmp_path / "back").rglob("*.sagemaker-*"))


def test_if_no_generation_is_sound_the_run_does_not_begin_again(bucket: S3Storage, tmp_path: Path) -> None:
    generations = BucketGenerations(bucket)
    put_all(generations, commit(tmp_path / "here", 2))
    for number in (1, 2):
        bucket.write(f"gen-00000{number}/state.json", b"[]")
    for _ in range(2):  # also the next time, when they are marked already
        with pytest.raises(ResumeError, match="no committed state is sound"):
            generations.fetch_newest_sound(tmp_path / "back")


def test_a_number_that_another_writer_committed_is_no_success(bucket: S3Storage, tmp_path: Path) -> None:
    generations = BucketGenerations(bucket)
    put_all(generations, commit(tmp_path / "here", 1))
    Checkpoints(LocalGenerations(tmp_path / "other")).commit({"epoch": 9}, {"weights": {"0": np.ones(3)}})
    with pytest.raises(StorageError, match="another writer"):
        generations.put(1, tmp_path / "other" / "gen-000001")
    assert generations.fetch_newest_sound(tmp_path / "back") == (1, [])  # the first one is as it was


def test_what_killed_writers_left_of_older_generations_goes_with_the_next_commit(
    bucket: S3Storage, tmp_path: Path
) -> None:
    generations = BucketGenerations(bucket)
    for number in (1, 2, 9):
        bucket.write(f"gen-{number:06d}/weights.npz", b"unfinished")
    store = commit(tmp_path / "here", 4)
    for number in (3, 4):
        generations.put(number, store.fetch(number))
    assert {key.split("/")[0] for key in bucket.list()} == {"gen-000003", "gen-000004", "gen-000009"}


class Waiting:
    """A sleep that takes no time and lets something happen meanwhile."""

    def __init__(self, meanwhile: Any = lambda: None) -> None:
        self.seconds = 0.0
        self._meanwhile = meanwhile

    def __call__(self, seconds: float) -> None:
        self.seconds += seconds
        self._meanwhile()


def test_s21_the_lease_of_a_dead_holder_is_taken_over_once_it_ran_out(bucket: S3Storage) -> None:
    Lease(bucket, "dead", life_s=60).take()
    sleep = Waiting()
    Lease(bucket, "next", sleep=sleep).take()
    assert sleep.seconds >= 60
    assert json.loads(bucket.read("lease.json"))["holder"] == "next"


def test_s21_a_living_holder_is_not_disturbed(bucket: S3Storage) -> None:
    living = Lease(bucket, "living")
    living.take()
    with pytest.raises(ConfigError, match="another machine is at work on this run"):
        Lease(bucket, "next", sleep=Waiting(living.renew)).take()
    living.renew()


def test_the_same_job_and_a_released_lease_are_taken_without_waiting(bucket: S3Storage) -> None:
    first = Lease(bucket, "job-a1")
    first.take()
    sleep = Waiting()
    again = Lease(bucket, "job-a1", sleep=sleep)
    again.take()
    with pytest.raises(LeaseLost):
        first.renew()
    again.release()
    Lease(bucket, "job-a2", sleep=sleep).take()
    assert sleep.seconds == 0


def of_lease(**changed: Any) -> bytes:
    return json.dumps({"holder": "other", "count": 1, "seconds": 60} | changed).encode()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        *[of_lease(seconds=value) for value in (0, -1, math.nan, math.inf, "x")],
        of_lease().replace(b'"count": 1', b'"count": 1e400'),
    ],
)
def test_s21_a_damaged_lease_stops_with_a_word(bucket: S3Storage, damage: bytes) -> None:
    bucket.write("lease.json", damage)
    with pytest.raises(StorageError, match="damaged, so nobody can say who works on this run"):
        Lease(bucket, "next").take()


def test_a_holder_that_comes_to_life_in_the_last_moment_keeps_its_run(bucket: S3Storage, monkeypatch: Any) -> None:
    slow = Lease(bucket, "slow")
    slow.take()
    sleep: Waiting = Waiting(lambda: slow.renew() if sleep.seconds > 60 + LIFE_S else None)
    read = Lease._read

    def looked_at_too_early(self: Lease) -> Any:
        found = read(self)
        if sleep.seconds > LIFE_S:  # the look that decides
            monkeypatch.setattr(Lease, "_read", read)
            slow.renew()
        return found

    monkeypatch.setattr(Lease, "_read", looked_at_too_early)
    with pytest.raises(ConfigError, match="another machine is at work on this run"):
        Lease(bucket, "next", sleep=sleep).take()
    slow.renew()


def test_a_stop_ends_the_wait_for_a_lease(put_run: Any) -> None:
    remote = put_run("run")
    Lease(remote.storage, "other", life_s=600).take()
    job = remote.start()
    assert job.stdout is not None and any("other held this run last" in line for line in job.stdout)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate()
    assert job.returncode == 75 and "stopped by SIGTERM before the run began" in output


def test_a_lease_that_is_removed_while_it_is_waited_for_is_taken_at_once(bucket: S3Storage) -> None:
    Lease(bucket, "dead").take()
    Lease(bucket, "next", sleep=Waiting(lambda: bucket.delete("lease.json"))).take()
    assert json.loads(bucket.read("lease.json"))["holder"] == "next"


@pytest.mark.parametrize("is_there", [False, True])
def test_a_machine_that_was_away_overwrites_no_word_of_its_successor(
    put_run: Any, tmp_path: Path, is_there: bool
) -> None:
    remote, lost = put_run("run"), threading.Event()
    if is_there:
        remote.storage.write("status.json", json.dumps(vars(RunStatus("interrupted", epoch=4))).encode())
    mine = RemoteRun(remote.storage, tmp_path / "mine" / "run", "mine", lost.set, life_s=600)
    run = mine.begin()
    remote.storage.write("status.json", json.dumps(vars(RunStatus("done", epoch=9))).encode())
    run.write_status(RunStatus("running", epoch=5))
    assert lost.wait(60)
    with pytest.raises(LeaseLost):
        mine.end()
    assert remote.status()["state"] == "done"


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "environment.json", "log.txt"])
def test_a_run_goes_on_though_what_it_said_before_is_damaged(
    put_run: Any, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    remote = put_run("run")
    remote.storage._client.put_object(
        Bucket=remote.storage.bucket, Key=f"{remote.storage.prefix}/{name}", Body=b"y", Metadata={"sha256": "0" * 64}
    )
    mine = RemoteRun(remote.storage, tmp_path / "mine" / "run", "mine")
    run = mine.begin()
    assert not (run.path / name).exists() and "left out, the run goes on without it" in caplog.text
    run.write_status(RunStatus("running", epoch=1))
    mine.end()
    assert remote.status()["state"] == "running"


def test_a_machine_that_lost_its_run_writes_nothing_more_and_stops_its_trainer(
    put_run: Any, bucket: S3Storage, tmp_path: Path
) -> None:
    remote, lost = put_run("run"), threading.Event()
    mine = RemoteRun(remote.storage, tmp_path / "mine" / "run", "mine", lost.set, life_s=0.3)
    run = mine.begin()
    taken = Lease(remote.storage, "mine")
    taken.take()
    assert lost.wait(60)
    run.metrics.write_text("{}\n")
    with pytest.raises(LeaseLost):
        mine.end()
    assert remote.metrics() == []


def test_a_machine_that_has_not_noticed_yet_that_it_lost_its_run_overwrites_nothing_at_its_end(
    put_run: Any, tmp_path: Path
) -> None:
    remote = put_run("run")
    mine = RemoteRun(remote.storage, tmp_path / "mine" / "run", "mine", life_s=600)
    run = mine.begin()
    Lease(remote.storage, "mine").take()
    run.give_verdict("interrupted", "stopped by SIGTERM")
    run.log.write_text("mine")
    with pytest.raises(LeaseLost):
        mine.end()
    assert remote.status() == {} and "log.txt" not in set(remote.storage.list())


def test_a_machine_that_has_not_noticed_yet_that_it_lost_its_run_commits_nothing(put_run: Any, tmp_path: Path) -> None:
    remote, lost = put_run("run"), threading.Event()
    mine = RemoteRun(remote.storage, tmp_path / "mine" / "run", "mine", lost.set, life_s=600)
    run = mine.begin()
    Lease(remote.storage, "mine").take()
    commit(run.checkpoints, 1)
    assert lost.wait(60)
    with pytest.raises(LeaseLost):
        mine.end()
    assert not [key for key in remote.storage.list() if key.startswith("checkpoint/")]


def test_a_lease_is_kept_alive_however_long_an_upload_takes(
    put_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, begun, may_end = put_run("run"), threading.Event(), threading.Event()

    def take_long(*arguments: object) -> None:
        begun.set()
        may_end.wait(120)

    monkeypatch.setattr(BucketGenerations, "put", take_long)
    mine = RemoteRun(remote.storage, tmp_path / "mine" / "run", "mine", life_s=6)
    commit(mine.begin().checkpoints, 1)
    assert begun.wait(60)
    with pytest.raises(ConfigError, match="another machine is at work on this run"):
        Lease(remote.storage, "next").take()
    may_end.set()
    mine.end()


def test_a_refusal_that_lasts_is_told_once_and_tried_ever_more_seldom(
    put_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remote, tries, enough = put_run("run"), list[float](), threading.Event()

    def refuse(self: RemoteRun, also_seldom: bool) -> None:
        tries.append(time.monotonic())
        if len(tries) == 5:
            enough.set()
        raise StorageError("no right to write it")

    monkeypatch.setattr("container.remote.LOOK_S", 0.02)
    monkeypatch.setattr(RemoteRun, "_put_what_is_new", refuse)
    mine = RemoteRun(remote.storage, tmp_path / "mine" / "run", "mine")
    mine.begin()
    assert enough.wait(60)
    mine.end()
    assert [record.message for record in caplog.records] == ["not brought to the bucket yet: no right to write it"]
    assert all(tries[n + 1] - tries[n] >= 0.04 * 2**n for n in range(4))


def test_a_run_whose_commits_are_all_damaged_says_so_in_its_status_and_lets_the_next_job_in(
    put_run: Any, tmp_path: Path
) -> None:
    remote = put_run("run")
    put_all(remote.generations, commit(tmp_path / "here", 1))
    remote.storage.write("checkpoint/gen-000001/state.json", b"[]")
    for job in ("job-a1", "job-a2"):  # the second waits for no lease
        output, _ = (process := remote.start(job)).communicate()
        assert process.returncode == 3 and "no committed state is sound" in output
        assert remote.status()["state"] == "failed" and "no committed state is sound" in remote.status()["reason"]


def test_a_run_that_cannot_begin_is_let_go_even_if_its_verdict_cannot_be_put(
    put_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = put_run("run")
    put_all(remote.generations, commit(tmp_path / "here", 1))
    remote.storage.write("checkpoint/gen-000001/state.json", b"[]")

    def refuse(*arguments: object) -> None:
        raise StorageError("no right to write it")

    monkeypatch.setattr(RemoteRun, "_put_record", refuse)
    with pytest.raises(StorageError, match="no right to write it"):
        RemoteRun(remote.storage, tmp_path / "mine" / "run", "mine").begin()
    sleep = Waiting()
    Lease(remote.storage, "next", sleep=sleep).take()
    assert sleep.seconds == 0


def test_a_bucket_that_cannot_be_read_marks_no_generation_as_damaged(
    bucket: S3Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generations = BucketGenerations(bucket)
    put_all(generations, commit(tmp_path / "here", 1))

    def refuse(*arguments: object) -> None:
        raise StorageError("no right to read it")

    monkeypatch.setattr(S3Storage, "download", refuse)
    with pytest.raises(StorageError, match="no right"):
        generations.fetch_newest_sound(tmp_path / "back")
    assert generations.numbers() == [1]


def test_no_kill_during_uploads_shows_a_reader_half_a_state(
    bucket: S3Storage, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    generations, kills, seed = BucketGenerations(bucket.below("checkpoint")), amount(6, 200), 41
    newest, unfinished = 0, 0
    for kill_number in range(kills):
        chance = random.Random(seed * 1000 + kill_number)
        command = [sys.executable, "-m", "tests.crash_upload", bucket.uri, str(tmp_path / f"writer-{kill_number}")]
        writer = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(chance.randrange(1, 3)):  # it has begun; then at any moment of what follows
            newest = int(writer.stdout.readline())
        with contextlib.suppress(subprocess.TimeoutExpired):
            writer.wait(chance.uniform(0, 0.3))
        writer.kill()
        writer.communicate()
        back = tmp_path / f"reader-{kill_number}"
        number, problems = generations.fetch_newest_sound(back)
        assert problems == [], f"seed {seed}, kill {kill_number}"
        assert number is not None and number >= newest
        state = Checkpoints(LocalGenerations(back)).restore()[0]
        assert state is not None and state.state == {"number": number}
        assert all((array == number).all() for array in state.arrays["weights"].values())
        assert int(bucket.read("status.json")) in (number - 1, number)
        unfinished += len(bucket.unfinished_uploads()) > 0
        for upload in bucket.unfinished_uploads():
            bucket.abort(upload)
        shutil.rmtree(back)
    assert bucket.unfinished_uploads() == ()
    measured(f"{kills} kill -9 during uploads, {unfinished} left parts behind: 0 half states, 0 lost")
