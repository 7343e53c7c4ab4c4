"""A study in a bucket: what of it comes to this machine, what never does, and what two writers leave."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from artclf.cache import fetched_dataset as dataset_in
from artclf.errors import ConfigError, Interrupted, StorageError
from artclf.prepare import Options, prepare
from artclf.records import Dataset
from artclf.rundir import RunDir, RunStatus
from artclf.s3 import S3Storage
from jobs import bucket_study
from jobs.bucket_study import BucketStudy
from jobs.gather import gather
from jobs.grid import Grid, expand, load_grid
from jobs.spec import JobHandle, JobState, Outcome
from jobs.submit import run_outcome
from tests.conftest import Amount, Measured
from tests.s3_proxy import ACCESS_DENIED, Break, FaultProxy, Meanwhile, Request
from tests.s3_servers import S3Server, wait_for_fetchers

GRID = """
study: little
dataset: data/x
base: {{model.name: cnn_tiny, train.epochs: 4}}
axes: {{train.seed: [{seeds}]}}
resources: {{max_hours: {hours}}}
"""
RUN = "runs/0123abcd"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Commands run from here; copies of studies lie below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bucket(moto_server: S3Server, models_parsed_once: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    with moto_server.fresh_bucket() as name:
        yield name


@pytest.fixture
def proxy(moto_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server, which studies now reach it through."""
    with FaultProxy(moto_server.url, moto_server.credentials) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy
        proxy.calm()
        wait_for_fetchers()


@pytest.fixture
def put(moto_server: S3Server, bucket: str) -> Callable[..., None]:
    """Returns what puts an object of the study, as somebody else would: without our metadata."""

    def put(key: str, content: bytes = b"{}") -> None:
        moto_server.client.put_object(Bucket=bucket, Key=f"studies/little/{key}", Body=content)

    return put


@pytest.fixture
def remove(moto_server: S3Server, bucket: str) -> Callable[[str], None]:
    """Returns what removes an object of the study."""

    def remove(key: str) -> None:
        moto_server.client.delete_object(Bucket=bucket, Key=f"studies/little/{key}")

    return remove


def opened(bucket: str) -> BucketStudy:
    return BucketStudy(f"s3://{bucket}/studies", "little")


def looked(bucket: str) -> BucketStudy:
    study = opened(bucket)
    study.refresh()
    return study


def copied(study: BucketStudy) -> dict[str, bytes]:
    """Returns the copied files with their contents."""
    files = [path for path in study.path.rglob("*") if path.is_file()]
    return {
        path.relative_to(study.path).as_posix(): path.read_bytes()
        for path in files
        if not path.name.startswith(".") and path.name != "model.keras"
    }


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def write_grid(folder: Path, seeds: str = "0, 1", hours: float = 24) -> Grid:
    path = folder / "little.yaml"
    path.write_text(GRID.format(seeds=seeds, hours=hours))
    return load_grid(path)


def finish(put: Callable[..., None], trial_id: str) -> None:
    for path in RunDir(Path()).left_when_done():
        put(f"runs/{trial_id}/{path.as_posix()}")
    put(f"runs/{trial_id}/status.json", json.dumps(vars(RunStatus("done", epoch=4))).encode())


# -- what comes here -----------------------------------------------------------------------------

HOSTILE = [
    "../../escaped",
    "runs/../../escaped",
    "runs/0123abcd/../../../../escaped",
    "/runs/0123abcd/abs",
    "runs//0123abcd/empty",
    "runs/0123abcd/./dot",
    "runs/0123abcd/folder/",
    "runs/0123abcd/.hidden",
    "runs/.hidden/status.json",
    "jobs/../escaped.json",
    "runs/0123abcd/" + "long" * 60,
    "runs/0123abcd/" + "字" * 100,
    "runs/0123abcd/" + "deep/" * 150 + "x",
    "runs/0123abcd/del\x7f",
    "runs/0123abcd/right\u202eleft",
    "jobs/.json",
]


@pytest.mark.parametrize("key", HOSTILE, ids=range(len(HOSTILE)))
def test_s06_a_hostile_key_never_becomes_a_path_and_stops_nothing(
    bucket: str, put: Callable[..., None], folder: Path, key: str
) -> None:
    put(key)
    put(f"{RUN}/status.json", b'{"state": "running"}')
    study = looked(bucket)
    assert copied(study) == {f"{RUN}/status.json": b'{"state": "running"}'}
    assert study.problems == []
    assert {name.partition("/")[0] for name in everything(folder)} == {"studies"}


def test_s08_odd_but_harmless_keys_come_as_they_are(bucket: str, put: Callable[..., None]) -> None:
    names = ["a b+c%2Fd", "?#&", "ünï-漢字", "quote'\"$(id)", "\\back", "-rf", "NUL", "Case", "case", "é", "e\u0301"]
    for name in names:
        put(f"{RUN}/{name}", name.encode())
    assert copied(looked(bucket)) == {f"{RUN}/{name}": name.encode() for name in names}


def test_large_files_and_those_of_nobody_who_looks_stay_in_the_bucket(bucket: str, put: Callable[..., None]) -> None:
    stay = ["model.keras", "checkpoint/gen-1/state.weights.h5", "tensorboard/events", "lease.json"]
    for key in [*(f"{RUN}/{name}" for name in stay), "report.html", "results.csv", "sagemaker/x/output/model.tar.gz"]:
        put(key)
    put(f"{RUN}/metrics.jsonl")
    study = looked(bucket)
    assert list(copied(study)) == [f"{RUN}/metrics.jsonl"]
    study.fetch_model("0123abcd")
    assert study.run("0123abcd").model.is_file()


@pytest.mark.parametrize("marker", ["sagemaker-uploading", "sagemaker-uploaded", "sagemaker-ignore"])
def test_s16_markers_of_sagemakers_own_upload_are_passed_over(
    bucket: str, put: Callable[..., None], marker: str
) -> None:
    put(f"{RUN}/status.json")
    put(f"{RUN}/status.json.{marker}")
    put(f"{RUN}/evaluation/val.json.{marker}")
    assert list(copied(looked(bucket))) == [f"{RUN}/status.json"]


@pytest.mark.parametrize("name", ["evaluation", "evaluation/val.json/x"])
def test_a_key_that_is_both_file_and_folder_is_named_and_the_others_come(
    bucket: str, put: Callable[..., None], name: str
) -> None:
    put(f"{RUN}/{name}")
    put(f"{RUN}/evaluation/val.json")
    put(f"{RUN}/status.json")
    study = looked(bucket)
    assert f"{RUN}/status.json" in copied(study) and len(copied(study)) == 2
    (problem,) = study.problems
    assert "evaluation" in problem


# -- what cannot be had --------------------------------------------------------------------------


def test_s13_a_forbidden_object_is_named_and_the_others_come(
    bucket: str, proxy: FaultProxy, put: Callable[..., None]
) -> None:
    for number in range(5):
        put(f"{RUN}/file-{number}", str(number).encode())
    proxy.on("GetObject", f"{RUN}/file-3", do=ACCESS_DENIED, times=None)
    study = looked(bucket)
    assert copied(study) == {f"{RUN}/file-{number}": str(number).encode() for number in (0, 1, 2, 4)}
    (problem,) = study.problems
    assert f"{RUN}/file-3: no right to read it" in problem
    study.refresh()
    assert len(study.problems) == 1
    gets = [request.key[-1] for request in proxy.requests if request.operation == "GetObject"]
    assert sorted(gets) == ["0", "1", "2", "3", "3", "4"]


def test_s13_what_was_forbidden_comes_once_it_is_allowed(
    bucket: str, proxy: FaultProxy, put: Callable[..., None]
) -> None:
    put(f"{RUN}/status.json")
    proxy.on("GetObject", do=ACCESS_DENIED)
    study = looked(bucket)
    assert study.problems and copied(study) == {}
    study.refresh()
    assert study.problems == [] and list(copied(study)) == [f"{RUN}/status.json"]


def test_damaged_content_never_takes_a_files_name(bucket: str, proxy: FaultProxy, put: Callable[..., None]) -> None:
    put(f"{RUN}/status.json", b"x" * 500)
    proxy.on("GetObject", do=(Break.CUT_ANSWER, Break.FLIP_ANSWER))
    assert copied(looked(bucket)) == {f"{RUN}/status.json": b"x" * 500}


def test_s10_a_listing_that_fails_in_the_middle_removes_nothing_here(
    bucket: str, proxy: FaultProxy, put: Callable[..., None]
) -> None:
    for number in range(6):
        put(f"{RUN}/file-{number}")
    study = looked(bucket)
    proxy.page_size = 2
    proxy.on("ListObjectsV2", do=ACCESS_DENIED, after=1)
    with pytest.raises(StorageError, match="no right to list"):
        study.refresh()
    assert len(copied(study)) == 6


# -- from look to look ---------------------------------------------------------------------------


def test_a_look_fetches_only_what_is_new_or_changed(bucket: str, proxy: FaultProxy, put: Callable[..., None]) -> None:
    for number in range(4):
        put(f"{RUN}/file-{number}", b"old")
    looked(bucket)
    put(f"{RUN}/file-1", b"new")
    put(f"{RUN}/file-9", b"more")
    proxy.requests.clear()
    study = looked(bucket)
    assert copied(study)[f"{RUN}/file-1"] == b"new"
    fetched = [request.key for request in proxy.requests if request.operation == "GetObject"]
    assert sorted(fetched) == [f"studies/little/{RUN}/file-1", f"studies/little/{RUN}/file-9"]


def test_what_is_removed_in_the_bucket_is_removed_here(
    bucket: str, put: Callable[..., None], remove: Callable[[str], None]
) -> None:
    put(f"{RUN}/status.json")
    put("runs/other/status.json")
    put("jobs/little-other-a1.json")
    looked(bucket)
    remove("runs/other/status.json")
    remove("jobs/little-other-a1.json")
    study = looked(bucket)
    assert list(copied(study)) == [f"{RUN}/status.json"]
    assert study.trial_ids() == ["0123abcd"]


def test_a_run_of_which_nothing_is_copied_is_known_all_the_same(bucket: str, put: Callable[..., None]) -> None:
    put("runs/began/checkpoint/gen-1/state.weights.h5")
    assert looked(bucket).trial_ids() == ["began"]


def test_an_object_that_vanishes_between_the_listing_and_its_turn_is_no_problem(
    bucket: str, proxy: FaultProxy, put: Callable[..., None], remove: Callable[[str], None]
) -> None:
    put(f"{RUN}/status.json")
    put(f"{RUN}/progress.json")
    proxy.on("GetObject", "progress.json", do=Meanwhile(lambda: remove(f"{RUN}/progress.json")))
    study = looked(bucket)
    assert study.problems == [] and list(copied(study)) == [f"{RUN}/status.json"]


def test_an_object_that_changes_while_it_is_copied_is_copied_again_at_the_next_look(
    bucket: str, proxy: FaultProxy, put: Callable[..., None]
) -> None:
    put(f"{RUN}/status.json", b"old")
    proxy.on("GetObject", "status.json", do=Meanwhile(lambda: put(f"{RUN}/status.json", b"new")))
    study = looked(bucket)
    put(f"{RUN}/status.json", b"newest")
    study.refresh()
    assert copied(study) == {f"{RUN}/status.json": b"newest"}


def _removed(study: BucketStudy) -> None:
    (study.path / RUN / "status.json").unlink()


def _overwritten(study: BucketStudy) -> None:
    path = study.path / RUN / "status.json"
    path.write_bytes(b"?" * path.stat().st_size)


def _emptied(study: BucketStudy) -> None:
    (study.path / RUN / "status.json").write_bytes(b"")


def _all_removed(study: BucketStudy) -> None:
    shutil.rmtree(bucket_study.COPIES)


def _index_removed(study: BucketStudy) -> None:
    (study.path / ".copied.json").unlink()


def _index_damaged(study: BucketStudy) -> None:
    (study.path / ".copied.json").write_text('{"runs/0123abcd/status.json": ')


def _index_of_another_kind(study: BucketStudy) -> None:
    (study.path / ".copied.json").write_text('{"runs/0123abcd/status.json": 7, "../../outside": ["x", "y"]}')


DAMAGES = [_removed, _overwritten, _emptied, _all_removed, _index_removed, _index_damaged, _index_of_another_kind]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_copy_that_is_damaged_here_is_mended_at_the_next_look(
    bucket: str,
    put: Callable[..., None],
    remove: Callable[[str], None],
    folder: Path,
    damage: Callable[[BucketStudy], None],
) -> None:
    put(f"{RUN}/status.json", b'{"state": "running"}')
    put("runs/gone/status.json", b'{"state": "done"}')
    outside = bucket_study.COPIES / bucket / "outside"
    study = looked(bucket)
    outside.write_text("mine")
    damage(study)
    remove("runs/gone/status.json")
    study = looked(bucket)
    assert copied(study) == {f"{RUN}/status.json": b'{"state": "running"}'}
    assert outside.exists() or damage is _all_removed


def test_looks_of_several_processes_at_once_leave_all_there_is(bucket: str, put: Callable[..., None]) -> None:
    studies = [opened(bucket) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(3):
            looks = [pool.submit(study.refresh) for study in studies]
            for number in range(10):
                put(f"runs/{round_}/file-{number}")
                handle = JobHandle("sagemaker", f"little-{round_}-a{number}", "", str(round_), number, "s3://x")
                looks.append(pool.submit(studies[number % 4].record_job, handle))
            for look in looks:
                look.result()
            for study in studies:
                assert set(study.last_jobs()) == {str(earlier) for earlier in range(round_ + 1)}
                assert study.last_jobs()[str(round_)].attempt == 9
    assert len(copied(looked(bucket))) == 60
    assert all(study.problems == [] for study in studies)


def test_a_verdict_that_another_process_brought_here_is_not_held_against_an_older_look(
    bucket: str, proxy: FaultProxy, put: Callable[..., None]
) -> None:
    put(f"{RUN}/status.json", b'{"state": "running"}')
    one, other = looked(bucket), looked(bucket)
    finish(put, "0123abcd")
    other.refresh()
    assert run_outcome(one, "0123abcd", JobState.SUCCEEDED).state == "done"


def test_a_verdict_that_came_after_the_listing_is_not_taken_for_one_without_its_files(
    bucket: str, proxy: FaultProxy, put: Callable[..., None]
) -> None:
    put(f"{RUN}/status.json", b'{"state": "running"}')
    proxy.on("GetObject", "status.json", do=Meanwhile(lambda: finish(put, "0123abcd")))
    assert run_outcome(looked(bucket), "0123abcd", JobState.RUNNING).state == "done"


def test_a_run_that_is_said_to_be_done_and_lacks_files_is_running_while_its_job_does(
    bucket: str, proxy: FaultProxy, put: Callable[..., None]
) -> None:
    put(f"{RUN}/status.json", b'{"state": "done", "epoch": 4}')
    assert run_outcome(looked(bucket), "0123abcd", JobState.RUNNING) == Outcome("running", epoch=4)


def test_a_finished_run_without_its_files_is_looked_for_once_more_and_no_more(
    bucket: str, proxy: FaultProxy, put: Callable[..., None]
) -> None:
    for trial_id in ("one", "two"):
        put(f"runs/{trial_id}/status.json", b'{"state": "done"}')
    study = looked(bucket)
    proxy.requests.clear()
    for _ in range(3):
        for trial_id in ("one", "two"):
            result = run_outcome(study, trial_id, JobState.SUCCEEDED)
            assert result.reason == "files of the finished run are missing"
    assert [request.operation for request in proxy.requests] == ["ListObjectsV2"]


def test_s10_every_one_of_3001_objects_comes_over_many_pages(
    bucket: str, proxy: FaultProxy, put: Callable[..., None], amount: Amount, measured: Measured
) -> None:
    count = amount(201, 3001)
    for number in range(count):
        put(f"runs/{number % 100:03}/file-{number}", str(number).encode())
    proxy.page_size = amount(20, 100)
    study = looked(bucket)
    assert copied(study) == {f"runs/{n % 100:03}/file-{n}": str(n).encode() for n in range(count)}
    proxy.requests.clear()
    study.refresh()
    pages = sum(request.operation == "ListObjectsV2" for request in proxy.requests)
    assert len(proxy.requests) == pages
    measured(f"{count:,} objects copied; a second look took {pages} pages and no object")


# -- grids ---------------------------------------------------------------------------------------


def test_s19_runs_of_an_older_grid_stay_apart_from_the_present_one(
    bucket: str, put: Callable[..., None], folder: Path
) -> None:
    old, new = write_grid(folder, "0, 1"), write_grid(folder, "1, 2")
    study = looked(bucket)
    for grid in (old, new):
        study.record(grid, "s3://my-art/data", "digest", expand(grid, "digest"))
        for trial in expand(grid, "digest").trials:
            finish(put, trial.trial_id)
    study.refresh()
    wanted = [trial.trial_id for trial in expand(new, "digest").trials]
    assert [result.trial_id for result in gather(study.path)] == wanted
    assert len(study.trial_ids()) == 3


def test_what_was_just_recorded_is_what_a_report_reads(bucket: str, folder: Path) -> None:
    study = looked(bucket)
    for seeds in ("0, 1", "0, 1, 2"):
        grid = write_grid(folder, seeds)
        study.record(grid, "s3://my-art/data", "digest", expand(grid, "digest"))
        content = study.read()
        assert content is not None and len(content["trials"]) == len(seeds.split(","))


def test_a_study_in_a_bucket_is_not_continued_with_other_data(bucket: str, folder: Path) -> None:
    grid = write_grid(folder)
    looked(bucket).record(grid, "s3://my-art/data", "digest", expand(grid, "digest"))
    with pytest.raises(ConfigError, match="submitted with the data digest"):
        looked(bucket).record(grid, "s3://my-art/other", "other", expand(grid, "other"))


def test_a_run_keeps_its_settings_and_gets_the_limit_of_the_latest_submit(bucket: str, folder: Path) -> None:
    study = looked(bucket)
    (trial, *_) = expand(write_grid(folder), "digest").trials
    study.begin_run(trial, "s3://my-art/data", "digest", max_hours=1)
    study.refresh()
    settings = study.run(trial.trial_id).config.read_bytes()
    study.begin_run(trial, "s3://my-art/data", "digest", max_hours=8)
    study.refresh()
    run = study.run(trial.trial_id)
    assert run.config.read_bytes() == settings
    assert run.read_job() == {"dataset": "s3://my-art/data", "data_digest": "digest", "max_hours": 8}


def test_settings_of_another_trial_are_not_trained_under_a_trials_name(bucket: str, folder: Path) -> None:
    study = looked(bucket)
    first, second = expand(write_grid(folder, "0, 1"), "digest").trials
    study.begin_run(second, "s3://my-art/data", "digest", max_hours=1)
    foreign = study.storage.read(f"runs/{second.trial_id}/config.json")
    study.storage.write(f"runs/{first.trial_id}/config.json", foreign)
    with pytest.raises(StorageError, match="holds the settings of another trial"):
        study.begin_run(first, "s3://my-art/data", "digest", max_hours=1)


def test_settings_that_compute_the_same_are_no_other_trials(bucket: str, folder: Path) -> None:
    study = looked(bucket)
    (trial,) = expand(write_grid(folder, "0"), "digest").trials
    study.begin_run(trial, "s3://my-art/data", "digest", max_hours=1)
    key = f"runs/{trial.trial_id}/config.json"
    settings = json.loads(study.storage.read(key))
    settings["train"]["checkpoint_every"]["epochs"] = 7
    study.storage.write(key, json.dumps(settings).encode())
    study.begin_run(trial, "s3://my-art/data", "digest", max_hours=1)
    assert json.loads(study.storage.read(key)) == settings


@pytest.mark.parametrize("damaged", [b"", b'{"model', b"[]", b"[" * 100_000, b'{"model.nmae": 1}'])
def test_damaged_settings_of_a_trial_are_written_anew(bucket: str, folder: Path, damaged: bytes) -> None:
    study = looked(bucket)
    (trial,) = expand(write_grid(folder, "0"), "digest").trials
    study.begin_run(trial, "s3://my-art/data", "digest", max_hours=1)
    key = f"runs/{trial.trial_id}/config.json"
    sound = study.storage.read(key)
    study.storage.write(key, damaged)
    study.begin_run(trial, "s3://my-art/data", "digest", max_hours=1)
    assert study.storage.read(key) == sound


def test_a_run_has_its_data_before_it_has_settings_to_begin_with(bucket: str, proxy: FaultProxy, folder: Path) -> None:
    study = looked(bucket)
    (trial, *_) = expand(write_grid(folder), "digest").trials
    study.begin_run(trial, "s3://my-art/data", "digest", max_hours=1)
    written = [request.key.rpartition("/")[2] for request in proxy.requests if request.operation == "PutObject"]
    assert written == ["job.json", "config.json"]


# -- what is shared ------------------------------------------------------------------------------


def puts(proxy: FaultProxy) -> list[str]:
    return [request.key.rpartition("/")[2] for request in proxy.requests if request.operation == "PutObject"]


def test_a_data_set_goes_to_the_bucket_once_and_its_manifest_last(
    bucket: str, proxy: FaultProxy, tiny_set: Dataset
) -> None:
    said: list[str] = []
    uri = looked(bucket).share_dataset(tiny_set, said.append)
    assert re.fullmatch(rf"s3://{bucket}/studies/\.shared/datasets/{tiny_set.digest[:16]}-[0-9a-f]{{8}}", uri)
    files = puts(proxy)
    assert files[-1] == "manifest.json" and len(files) == len(set(files)) > 1
    proxy.requests.clear()
    assert looked(bucket).share_dataset(tiny_set, said.append) == uri
    assert puts(proxy) == [] and len(said) == 1


def test_a_data_set_whose_upload_broke_off_goes_on_where_it_was(
    bucket: str, proxy: FaultProxy, tiny_set: Dataset
) -> None:
    proxy.on("PutObject", "manifest.json", do=ACCESS_DENIED)
    study = looked(bucket)
    with pytest.raises(StorageError, match=r"manifest\.json: no right to write it"):
        study.share_dataset(tiny_set, print)
    proxy.requests.clear()
    study.share_dataset(tiny_set, print)
    assert puts(proxy) == ["manifest.json"]


@pytest.mark.parametrize("how", ["lost", "cut"])
def test_a_shared_data_set_that_lost_a_file_or_a_part_of_one_is_made_whole_again(
    bucket: str, proxy: FaultProxy, tiny_set: Dataset, how: str
) -> None:
    study = looked(bucket)
    place = S3Storage(study.share_dataset(tiny_set, print))
    shard = tiny_set.manifest["shards"][0]["name"]
    if how == "lost":
        place.delete(shard)
    else:
        place.write(shard, b"a part")
    proxy.requests.clear()
    study.share_dataset(tiny_set, print)
    assert puts(proxy) == [Path(shard).name, "manifest.json"]
    assert dataset_in(place.uri).digest == tiny_set.digest and place.holds(
        shard, tiny_set.manifest["shards"][0]["sha256"]
    )


def test_of_two_submitters_with_other_data_only_the_first_gets_the_study(
    bucket: str, proxy: FaultProxy, folder: Path
) -> None:
    grid = write_grid(folder, "0")
    quick, slow = looked(bucket), looked(bucket)
    proxy.on(
        "PutObject",
        "little/study.json",
        do=Meanwhile(lambda: quick.record(grid, "s3://a/b", "one", expand(grid, "one"))),
    )
    with pytest.raises(ConfigError, match="submitted with the data one, now the data set is other"):
        slow.record(grid, "s3://a/c", "other", expand(grid, "other"))
    assert (looked(bucket).read() or {})["data_digest"] == "one"


def test_a_study_that_another_submitter_grew_meanwhile_is_grown_further(
    bucket: str, proxy: FaultProxy, folder: Path
) -> None:
    grid, grown = write_grid(folder, "0"), write_grid(folder, "0, 1")
    first, second = looked(bucket), looked(bucket)
    first.record(grid, "s3://a/b", "one", expand(grid, "one"))
    proxy.on(
        "PutObject",
        "little/study.json",
        do=Meanwhile(lambda: first.record(grown, "s3://a/b", "one", expand(grown, "one"))),
    )
    third = write_grid(folder, "0, 1, 2")
    second.refresh()
    second.record(third, "s3://a/b", "one", expand(third, "one"))
    assert len((looked(bucket).read() or {})["trials"]) == 3


def test_a_study_that_cannot_be_read_is_not_taken_for_a_new_one(bucket: str, proxy: FaultProxy, folder: Path) -> None:
    grid = write_grid(folder, "0")
    looked(bucket).record(grid, "s3://a/b", "one", expand(grid, "one"))
    shutil.rmtree(looked(bucket).path)
    proxy.on("GetObject", "little/study.json", do=ACCESS_DENIED, times=None)
    study = looked(bucket)
    for call in (study.read, lambda: study.record(grid, "s3://a/c", "other", expand(grid, "other"))):
        with pytest.raises(StorageError, match=r"little/study\.json: cannot be read: .*no right to read it"):
            call()


@pytest.mark.parametrize("content", [b"null", b"", b"[]", b"{}"])
def test_a_study_of_another_form_is_told_by_its_uri(bucket: str, put: Callable[..., None], content: bytes) -> None:
    put("study.json", content)
    with pytest.raises(StorageError, match=rf"s3://{bucket}/studies/little/study\.json: |little/study\.json"):
        looked(bucket).read()


def test_a_study_that_is_never_listed_is_given_up_in_words(
    bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, grid = looked(bucket), write_grid(folder, "0")
    monkeypatch.setattr(BucketStudy, "_put_study", lambda self, content: False)
    with pytest.raises(StorageError, match="others change it all the time, or what is listed is not what is there"):
        study.record(grid, "s3://a/b", "one", expand(grid, "one"))


@pytest.mark.parametrize("key", ["", "a//b", "../x", "folder/"])
def test_a_run_is_removed_whole_whatever_its_keys_look_like(bucket: str, put: Callable[..., None], key: str) -> None:
    put(f"{RUN}/config.json")
    put(f"{RUN}/{key}")
    study = looked(bucket)
    _, remove = study.run_in_bucket("0123abcd")
    remove()
    assert list(study.storage.list(RUN)) == []


def test_an_upload_says_how_far_it_is_and_stops_between_files_when_asked(
    bucket: str, proxy: FaultProxy, tiny_set: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_study, "TOLD_EVERY_S", 0)
    study, said, checks = looked(bucket), list[str](), itertools.count(1)

    def check() -> None:
        if next(checks) == 2:
            raise Interrupted("stopped by SIGINT")

    with pytest.raises(Interrupted):
        study.share_dataset(tiny_set, said.append, check)
    assert "manifest.json" not in puts(proxy)
    assert re.fullmatch(r"\d+ of \d+ MB, [\d.]+ s left", said[1])
    assert dataset_in(study.share_dataset(tiny_set, said.append)).digest == tiny_set.digest


def test_the_same_pictures_under_other_names_harm_no_data_set_that_is_shared_already(
    bucket: str, tiny_pictures: Path, tiny_set: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(tiny_pictures, tmp_path / "pictures")
    for path in (tmp_path / "pictures").rglob("*.png"):
        path.rename(path.with_name(f"{path.stem.replace('_', '_new_')}.png"))
    renamed = prepare([str(tmp_path / "pictures")], tmp_path / "renamed", Options())
    uris = [looked(bucket).share_dataset(dataset, print) for dataset in (tiny_set, renamed, tiny_set)]
    assert [dataset_in(uri).digest for uri in uris] == [tiny_set.digest, renamed.digest, tiny_set.digest]


def test_two_submitters_may_share_a_data_set_at_once(bucket: str, tiny_set: Dataset) -> None:
    studies = [looked(bucket) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        uris = set(pool.map(lambda study: study.share_dataset(tiny_set, print), studies))
    (uri,) = uris
    assert dataset_in(uri).digest == tiny_set.digest


def test_a_data_set_of_a_bucket_is_used_where_it_lies(bucket: str, proxy: FaultProxy, tiny_set: Dataset) -> None:
    there = Dataset.open(tiny_set.folder, place="s3://other/data")
    assert looked(bucket).share_dataset(there, print) == "s3://other/data"
    assert puts(proxy) == []


def test_a_file_of_weights_goes_to_the_bucket_once_and_runs_name_it_there(
    bucket: str, proxy: FaultProxy, folder: Path
) -> None:
    (folder / "my weights.h5").write_bytes(os.urandom(100))
    grid = folder / "g.yaml"
    grid.write_text(
        "study: little\ndataset: data/x\nbase: {model: {name: mobilenet, weights: my weights.h5}}\n"
        "axes: {train.seed: [0, 1, 2]}\n"
    )
    study = looked(bucket)
    for trial in expand(load_grid(grid), "digest").trials:
        study.begin_run(trial, "s3://my-art/data", "digest", max_hours=1)
    study.refresh()
    named = {study.run(trial_id).read_config().model.weights for trial_id in study.trial_ids()}
    assert len(named) == 1 and named.pop().startswith(f"s3://{bucket}/studies/.shared/weights/")
    assert puts(proxy).count("my weights.h5") == 1


# -- asking to stop ------------------------------------------------------------------------------


def test_each_request_to_stop_is_another_word_for_every_submitter(bucket: str) -> None:
    one, other = looked(bucket), looked(bucket)
    words = [other.stops_asked()]
    for _ in range(2):
        one.ask_to_stop()
        other.refresh()
        words.append(other.stops_asked())
    assert words[0] == "" and len(set(words)) == 3


@pytest.mark.parametrize("content", [b"", b"[]", b'{"token": 7}', b"{}"])
def test_a_damaged_request_to_stop_is_no_hindrance(bucket: str, put: Callable[..., None], content: bytes) -> None:
    put("stop.json", content)
    study = looked(bucket)
    before = study.stops_asked()
    study.ask_to_stop()
    study.refresh()
    assert before != study.stops_asked()


# -- what a study refuses ------------------------------------------------------------------------


def test_s22_a_server_that_ignores_conditional_puts_is_refused(bucket: str, proxy: FaultProxy) -> None:
    proxy.dropped = ("if-none-match", "if-match")
    with pytest.raises(ConfigError, match="ignores If-None-Match, so two submitters could start everything twice"):
        opened(bucket).check()


def test_s14_a_missing_bucket_is_told(bucket: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no bucket no-such-bucket"):
        BucketStudy("s3://no-such-bucket/studies", "little").refresh()


def test_s12_every_call_names_the_account_that_must_own_the_bucket(bucket: str, proxy: FaultProxy) -> None:
    study = BucketStudy(f"s3://{bucket}/studies", "little", account="123456789012")
    study.refresh()
    study.ask_to_stop()
    study.check()
    owners: list[Any] = [request.headers.get("x-amz-expected-bucket-owner") for request in proxy.requests]
    assert len(owners) > 4 and set(owners) == {"123456789012"}


def test_s12_a_bucket_of_another_account_is_refused_with_both_reasons(bucket: str, proxy: FaultProxy) -> None:
    def is_owned_by_another(request: Request) -> bool:
        return "x-amz-expected-bucket-owner" in request.headers

    proxy.on(do=ACCESS_DENIED, times=None, when=is_owned_by_another)
    with pytest.raises(StorageError, match="or it does not belong to the account 123456789012"):
        BucketStudy(f"s3://{bucket}/studies", "little", account="123456789012").refresh()
