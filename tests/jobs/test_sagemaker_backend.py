"""The sagemaker backend over HTTP, against the stand-in that knows AWS's own models: no job twice, none missing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.session import get_session
from botocore.validate import ParamValidator

from artclf.errors import ConfigError
from artclf.interrupt import StopRequest
from artclf.rundir import RunStatus
from jobs.backends.sagemaker import SageMakerBackend
from jobs.bucket_study import BucketStudy
from jobs.grid import expand
from jobs.settings import CloudSettings
from jobs.spec import BackendError, JobSpec, JobState
from tests.conftest import Amount, Measured
from tests.fake_aws.clock import Clock
from tests.fake_aws.logs import FakeLogs
from tests.fake_aws.model import broken_rules
from tests.fake_aws.protocols import ServiceError
from tests.fake_aws.sagemaker import FakeSageMaker
from tests.fake_aws.server import REGION, FakeAws, Lost
from tests.fake_aws.sts import FakeSts
from tests.fake_aws.training_job import Durations, Job
from tests.fake_aws.workloads import Scripted
from tests.scripted_cloud import SETTINGS, SPEC, SPOT_QUOTA, Cloud, read_grid, submit

GOLDEN = Path(__file__).parent / "golden"


# -- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spec", "settings"),
    [
        ("spot", SPEC, SETTINGS),
        (
            "on_demand_warm",
            replace(SPEC, spot=False, max_hours=0.001),
            replace(SETTINGS, warm_pool_minutes=10),
        ),
        ("longest", replace(SPEC, max_hours=28 * 24, max_wait_hours=28 * 24, instance="g4dn.12xlarge"), SETTINGS),
    ],
)
def test_a_request_is_the_golden_one_and_fits_awss_own_model(name: str, spec: JobSpec, settings: CloudSettings) -> None:
    request = SageMakerBackend(settings).request(spec)
    assert request == json.loads((GOLDEN / f"{name}.json").read_text())
    shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    assert shape is not None
    assert not ParamValidator().validate(request, shape).has_errors()
    assert list(broken_rules(shape, request)) == []


def test_the_line_of_an_epoch_gives_sagemaker_its_figures() -> None:
    from jobs.backends.sagemaker import METRICS

    line = "epoch 3/20  loss 1.4008 (val 1.3377)  accuracy 0.4208 (val 0.2833)  0.2 s"
    found = {name: re.search(regex, line) for name, regex in METRICS.items()}
    assert {name: match and match[1] for name, match in found.items()} == {
        "loss": "1.4008",
        "val_loss": "1.3377",
        "accuracy": "0.4208",
        "val_accuracy": "0.2833",
    }


# -- waiting, not failing ------------------------------------------------------------------------


def test_a_full_quota_is_waited_out_and_never_passed(
    bucket: str, reach: Any, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    count = amount(12, 40)
    cloud = Cloud(bucket, quotas={SPOT_QUOTA: 4})
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        ended = submit(cloud, read_grid(tmp_path, count, parallel=count), aws.clock.advance)
    assert [result.state for result in ended.values()] == ["done"] * count
    assert cloud.sagemaker.most_alive() == 4 and len(cloud.sagemaker.history) == count
    measured(f"quota of 4, {count} jobs: never more than 4 at once, all done")


def test_throttled_creates_fail_no_trial_and_looks_stay_rare(
    bucket: str, reach: Any, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    count = amount(30, 200)
    cloud = Cloud(bucket, seconds=1200)
    rates = {"sagemaker.CreateTrainingJob": 1.0}
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock(), rates=rates)) as aws:
        ended = submit(cloud, read_grid(tmp_path, count, parallel=count), aws.clock.advance)
        reads = aws.most_a_minute("ListTrainingJobs") + aws.most_a_minute("DescribeTrainingJob")
        throttled = sum(request.outcome == "ThrottlingException" for request in aws.requests)
    assert [result.state for result in ended.values()] == ["done"] * count
    assert throttled > 0 and len(cloud.sagemaker.history) == count
    assert reads <= 10
    measured(f"1 create a second, {count} jobs: {throttled} throttled, 0 failures, at most {reads} reads a minute")


def test_missing_capacity_is_waited_for_ever_longer_and_the_trial_ends_under_its_next_attempt(
    bucket: str, reach: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = Cloud(bucket, lacks_capacity=lambda job: job.name.endswith(("-a1", "-a2", "-a3", "-a4", "-a5", "-a6")))
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        ended = submit(cloud, read_grid(tmp_path, 1, parallel=1), aws.clock.advance)
    assert [result.state for result in ended.values()] == ["done"]
    assert [job.name[-2:] for job in cloud.sagemaker.history] == [f"a{number}" for number in range(1, 8)]
    told = re.findall(r"the next try in (.*?):", capsys.readouterr().out)
    assert told == ["10 s", "20 s", "40 s", "1 min 20 s", "2 min 00 s", "2 min 00 s"]


def test_once_a_machine_was_had_the_next_one_is_asked_for_soon_again(
    bucket: str, reach: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = ("-a1", "-a2")
    cloud = Cloud(bucket, lacks_capacity=lambda job: job.name.endswith(lacking))
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        submit(cloud, read_grid(tmp_path, 2, parallel=1), aws.clock.advance)
    assert re.findall(r"the next try in (.*?):", capsys.readouterr().out) == ["10 s", "20 s", "10 s", "20 s"]


def test_a_spot_job_that_waited_too_long_is_followed_by_the_next_attempt(
    bucket: str, reach: Any, tmp_path: Path
) -> None:
    patience_s = 2 * 24 * 3600
    cloud = Cloud(bucket)
    cloud.sagemaker = FakeSageMaker(
        cloud._work, durations=lambda job: Durations(pending=patience_s if job.name.endswith("-a1") else 30)
    )
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        seldom = replace(SETTINGS, poll_seconds=3600)
        ended = submit(cloud, read_grid(tmp_path, 1, parallel=1), aws.clock.advance, settings=seldom)
    assert [(job.name[-2:], job.secondary) for job in cloud.sagemaker.history] == [
        ("a1", "MaxWaitTimeExceeded"),
        ("a2", "Completed"),
    ]
    assert [result.state for result in ended.values()] == ["done"]


def test_a_trial_whose_job_failed_by_the_loss_of_its_machine_goes_on_in_another(
    bucket: str, reach: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = Cloud(bucket)

    def work(job: Job) -> Scripted:
        def saves(job: Job, how: str) -> None:
            status = RunStatus("interrupted", reason="stopped by SIGTERM", epoch=2)
            cloud._run(job).write("status.json", json.dumps(vars(status)).encode())

        return Scripted(seconds=60, exit_code=75, on_end=saves) if job.name.endswith("-a1") else cloud._work(job)

    cloud.sagemaker = FakeSageMaker(work, durations=Durations())
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        ended = submit(cloud, read_grid(tmp_path, 1, parallel=1), aws.clock.advance)
    assert [(job.name[-2:], job.status) for job in cloud.sagemaker.history] == [("a1", "Failed"), ("a2", "Completed")]
    assert [result.state for result in ended.values()] == ["done"]
    assert re.search(r"continues .*\(from epoch 2 of 4: was interrupted\)", capsys.readouterr().out)


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM"])
def test_a_failure_before_the_run_went_on_is_told_although_the_run_was_interrupted_earlier(
    bucket: str, reach: Any, tmp_path: Path, by: str
) -> None:
    cloud, grid = Cloud(bucket), read_grid(tmp_path, 1, parallel=1)
    cloud.sagemaker = FakeSageMaker(lambda job: Scripted(exit_code=1, failure="CannotStartContainer: no such image"))
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        (trial,) = expand(grid, "digest").trials
        status = RunStatus("interrupted", reason=f"stopped by {by}", epoch=2)
        cloud.storage.write(f"many/runs/{trial.trial_id}/status.json", json.dumps(vars(status)).encode())
        (result,) = submit(cloud, grid, aws.clock.advance).values()
    assert result.reason == f"stopped by {by} (CannotStartContainer: no such image)"
    assert len(cloud.sagemaker.history) == 1


# -- names are given once ------------------------------------------------------------------------


def test_a_lost_answer_starts_no_second_job(bucket: str, reach: Any, tmp_path: Path) -> None:
    cloud, lost = Cloud(bucket), set[str]()

    def before(service: str, operation: str, params: Any) -> Lost | None:
        name = params.get("TrainingJobName", "")
        if operation == "CreateTrainingJob" and name not in lost:
            lost.add(name)
            return Lost.ANSWER
        return None

    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock(), before=before)) as aws:
        ended = submit(cloud, read_grid(tmp_path, 3, parallel=3), aws.clock.advance)
    assert [result.state for result in ended.values()] == ["done"] * 3
    assert len(lost) == 3 and len(cloud.sagemaker.history) == 3


def test_a_name_that_another_run_has_is_refused(bucket: str, reach: Any) -> None:
    cloud = Cloud(bucket)
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        backend = SageMakerBackend(SETTINGS, sleep=aws.clock.advance)
        backend.submit(SPEC)
        assert backend.submit(SPEC).remote_id.endswith(SPEC.name)
        with pytest.raises(BackendError, match="Give the study another name"):
            backend.submit(replace(SPEC, run_uri="s3://other/studies/artists/runs/3f9a1c2b"))


def test_an_ended_job_whose_run_was_deleted_is_followed_by_the_next_attempt(
    bucket: str, reach: Any, tmp_path: Path
) -> None:
    cloud, grid = Cloud(bucket), read_grid(tmp_path, 1, parallel=1)
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        submit(cloud, grid, aws.clock.advance)
        for key in list(cloud.storage.list()):
            cloud.storage.delete(key)
        ended = submit(cloud, grid, aws.clock.advance)
    assert [result.state for result in ended.values()] == ["done"]
    assert [job.name[-2:] for job in cloud.sagemaker.history] == ["a1", "a2"]


def test_a_word_that_nobody_knows_yet_is_kept_and_taken_for_alive(bucket: str, reach: Any) -> None:
    cloud = Cloud(bucket)
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())):
        backend = SageMakerBackend(SETTINGS)
        handle = backend.submit(SPEC)
        backend._listed = lambda handles: {SPEC.name: {"TrainingJobStatus": "Deleting"}}  # type: ignore[method-assign]
        (status,) = backend.status([handle])
    assert status.state is JobState.UNKNOWN and status.state.alive and status.word == "Deleting"


# -- logs -----------------------------------------------------------------------------------------


def test_a_job_that_printed_nothing_yet_has_no_log_and_a_refusal_is_told(bucket: str, reach: Any) -> None:
    def before(service: str, operation: str, params: Any) -> ServiceError | None:
        return refusal if operation == "DescribeLogStreams" else None

    cloud, refusal = Cloud(bucket), None
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock(), before=before)):
        backend = SageMakerBackend(SETTINGS)
        handle = backend.submit(SPEC)
        assert list(backend.logs(handle)) == []
        refusal = ServiceError("AccessDeniedException", "not authorized to perform: logs:DescribeLogStreams")
        with pytest.raises(ConfigError, match="lack a right: not authorized to perform: logs:DescribeLogStreams"):
            list(backend.logs(handle))


# -- stopping ------------------------------------------------------------------------------------


def test_a_stop_of_the_submitter_leaves_the_jobs_at_work(bucket: str, reach: Any, tmp_path: Path) -> None:
    cloud, stop = Cloud(bucket, seconds=10_000), StopRequest()
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:

        def sleep(seconds: float) -> None:
            aws.clock.advance(seconds)
            stop.reason = "SIGINT"

        assert submit(cloud, read_grid(tmp_path, 4, parallel=2), sleep, stop) == {}
        assert [job.status for job in cloud.sagemaker.history] == ["InProgress"] * 2
        assert not any(request.operation == "StopTrainingJob" for request in aws.requests)


def test_a_stop_asked_for_through_the_study_reaches_every_submitter(bucket: str, reach: Any, tmp_path: Path) -> None:
    cloud, grid = Cloud(bucket, seconds=10_000), read_grid(tmp_path, 4, parallel=2)
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:

        def sleep(seconds: float) -> None:
            aws.clock.advance(seconds)
            BucketStudy(cloud.root, grid.study).ask_to_stop()

        assert submit(cloud, grid, sleep) == {}
    assert len(cloud.sagemaker.history) == 2


def test_a_stop_asked_for_in_the_moment_in_which_a_job_ends_starts_no_other_in_its_place(
    bucket: str, reach: Any, tmp_path: Path
) -> None:
    cloud, grid = Cloud(bucket, seconds=1), read_grid(tmp_path, 2, parallel=1)

    def before(service: str, operation: str, params: Any) -> None:
        if operation == "ListTrainingJobs":
            BucketStudy(cloud.root, grid.study).ask_to_stop()

    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock(), before=before)) as aws:
        submit(cloud, grid, aws.clock.advance, settings=replace(SETTINGS, poll_seconds=3600))
    assert [job.status for job in cloud.sagemaker.history] == ["Completed"]


def test_a_stop_asked_for_while_a_submit_prepared_lets_it_start_nothing(
    bucket: str, reach: Any, tmp_path: Path
) -> None:
    cloud, grid = Cloud(bucket), read_grid(tmp_path, 2, parallel=2)
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        study = BucketStudy(cloud.root, grid.study)
        asked_before = study.stops_asked()
        study.ask_to_stop()
        assert submit(cloud, grid, aws.clock.advance, asked_before=asked_before) == {}
    assert cloud.sagemaker.history == []


def test_a_trial_that_is_stopped_by_name_while_it_waits_for_a_machine_is_not_started_again(
    bucket: str, reach: Any, tmp_path: Path
) -> None:
    cloud, grid = Cloud(bucket, lacks_capacity=lambda job: True), read_grid(tmp_path, 1, parallel=1)
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:

        def sleep(seconds: float) -> None:
            aws.clock.advance(seconds)
            if cloud.sagemaker.history and cloud.sagemaker.history[0].status == "Failed":
                study = BucketStudy(cloud.root, grid.study)
                study.ask_to_stop([trial.trial_id for trial in expand(grid, "digest").trials])

        (result,) = submit(cloud, grid, sleep).values()
    assert result.state == "missing" and len(cloud.sagemaker.history) == 1


def test_a_stop_of_one_trial_lets_the_others_start(bucket: str, reach: Any, tmp_path: Path) -> None:
    cloud, grid = Cloud(bucket), read_grid(tmp_path, 3, parallel=1)
    first, second, third = (trial.trial_id for trial in expand(grid, "digest").trials)
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        asked_before = BucketStudy(cloud.root, grid.study).stops_asked()
        BucketStudy(cloud.root, grid.study).ask_to_stop([second])
        ended = submit(cloud, grid, aws.clock.advance, asked_before=asked_before)
    assert {name: result.state for name, result in ended.items()} == {first: "done", second: "missing", third: "done"}


def test_an_odd_record_among_the_jobs_keeps_nobody_from_the_others(bucket: str, reach: Any, tmp_path: Path) -> None:
    cloud, grid = Cloud(bucket), read_grid(tmp_path, 1, parallel=1)
    with reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        for name in ("", "a b_c", "0" * 64, "other-0123abcd-a1"):
            handle = {"backend": "", "name": name, "remote_id": "x", "trial_id": "0", "attempt": 1, "run_uri": ""}
            cloud.storage.write(f"many/jobs/0{len(name)}.json", json.dumps(handle).encode())
        ended = submit(cloud, grid, aws.clock.advance)
    assert [result.state for result in ended.values()] == ["done"]


def test_stopping_twice_or_what_has_ended_is_harmless(bucket: str, reach: Any) -> None:
    sagemaker = FakeSageMaker(lambda job: Scripted(seconds=10_000, stops_after_s=100), durations=Durations())
    with reach(FakeAws(sagemaker, FakeLogs(), FakeSts(), clock=Clock())) as aws:
        backend = SageMakerBackend(SETTINGS, sleep=aws.clock.advance)
        handle = backend.submit(SPEC)
        aws.clock.advance(200)
        for pause_s in (0, 30, 200, 0):
            backend.stop(handle)
            aws.clock.advance(pause_s)
        assert backend.status([handle])[0].state is JobState.STOPPED


def test_the_wrong_account_is_refused(bucket: str, reach: Any) -> None:
    cloud = Cloud(bucket)
    with (
        reach(FakeAws(cloud.sagemaker, FakeLogs(), FakeSts(), clock=Clock())),
        pytest.raises(ConfigError, match=r"are of the account 123456789012, cloud\.yaml expects 999999999999"),
    ):
        SageMakerBackend(replace(SETTINGS, account="999999999999")).check()


def test_a_bucket_of_another_region_is_refused(bucket: str) -> None:
    boto3.client("s3", region_name="eu-west-1").create_bucket(
        Bucket=f"{bucket}-eu", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    with pytest.raises(ConfigError, match="the bucket is in eu-west-1, the jobs would run in us-east-1"):
        BucketStudy(f"s3://{bucket}-eu/studies", "many", region=REGION).check()
