"""The sagemaker backend and the commands over it: killed, stopped, refused, told secrets; over HTTP, as real runs."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore import exceptions
from botocore.session import get_session
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from artclf.errors import ConfigError, StorageError
from artclf.interrupt import StopRequest
from artclf.records import Dataset
from artclf.s3 import S3Storage
from jobs.backends.sagemaker import SageMakerBackend
from jobs.bucket_study import BucketStudy
from jobs.display import BarWatcher
from jobs.grid import G4DN_VCPUS, expand, load_grid
from jobs.plan import plan
from jobs.settings import CloudSettings
from jobs.spec import BackendError, JobHandle, JobSpec, JobState, QuotaError
from jobs.submit import Submission, job_spec, outcomes
from tests.conftest import PROJECT, Amount, Measured
from tests.fake_aws.clock import Clock, SteppingClock
from tests.fake_aws.logs import FakeLogs
from tests.fake_aws.model import broken_rules
from tests.fake_aws.protocols import ServiceError
from tests.fake_aws.sagemaker import LOG_GROUP, FakeSageMaker
from tests.fake_aws.server import ACCOUNT, REGION, FakeAws, Lost
from tests.fake_aws.sts import FakeSts
from tests.fake_aws.training_job import Durations
from tests.fake_aws.workloads import EntryPoint, Scripted
from tests.little_grid import write_grid
from tests.s3_proxy import FaultProxy
from tests.s3_servers import S3Server
from tests.scripted_cloud import SETTINGS, SPEC, SPOT_QUOTA, Cloud, read_grid, submit

Reach = Callable[[FakeAws], FakeAws]


@pytest.fixture(autouse=True)
def quick_clients(models_parsed_once: None) -> None:
    """Clients are made in a tenth of the time."""


def account(sagemaker: FakeSageMaker, **knobs: Any) -> FakeAws:
    return FakeAws(sagemaker, FakeLogs(), FakeSts(), **{"clock": Clock(), **knobs})


def backend_at(aws: FakeAws, settings: CloudSettings = SETTINGS) -> SageMakerBackend:
    """Returns a backend that lives in the stand-in's time."""
    return SageMakerBackend(settings, sleep=aws.clock.advance, clock=aws.clock.now)


def specs(count: int) -> list[JobSpec]:
    return [
        replace(
            SPEC, name=f"artists-{n:08x}-a1", trial_id=f"{n:08x}", run_uri=f"s3://my-art/studies/artists/runs/{n:08x}"
        )
        for n in range(count)
    ]


# -- requests ------------------------------------------------------------------------------------


def broken(request: Mapping[str, Any]) -> list[str]:
    shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    assert shape is not None
    return broken_rules(shape, request)


HOURS = st.floats(min_value=0, max_value=672, exclude_min=True, allow_subnormal=False)
TAG_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30) | st.text(
    "aZ0é漢²Ⅷ _.:/=+-@", max_size=256
)


@hypothesis_settings(max_examples=80)
@given(
    study=st.from_regex(r"[a-z][a-z0-9-]{0,39}", fullmatch=True),
    trial_id=st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    attempt=st.integers(1, 999_999_999),
    instance=st.sampled_from(sorted(G4DN_VCPUS)),
    spot=st.booleans(),
    max_hours=HOURS,
    max_wait_hours=st.none() | HOURS,
    tags=st.dictionaries(TAG_TEXT, TAG_TEXT, max_size=41),
)
def test_whatever_a_grid_allows_is_a_request_that_sagemaker_takes(
    tmp_path_factory: pytest.TempPathFactory,
    study: str,
    trial_id: str,
    attempt: int,
    instance: str,
    spot: bool,
    max_hours: float,
    max_wait_hours: float | None,
    tags: dict[str, str],
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    resources = {"instance": instance, "spot": spot, "max_hours": max_hours, "max_wait_hours": max_wait_hours}
    path.write_text(json.dumps({"study": study, "dataset": "sample:", "resources": {**resources, "tags": tags}}))
    try:
        grid = load_grid(path)
    except ConfigError:
        assume(False)
    backend = SageMakerBackend(replace(SETTINGS, warm_pool_minutes=60))
    place = BucketStudyAt("s3://my-art/studies", study)
    spec = job_spec(place, grid, TrialOf(trial_id), attempt)  # type: ignore[arg-type]
    if instance == "g4dn.metal":
        with pytest.raises(ConfigError, match=r"SageMaker does not offer g4dn\.metal"):
            backend.request(spec)
        return
    request = backend.request(spec)
    assert broken(request) == []
    assert len(request["TrainingJobName"]) <= 63
    stopping = request["StoppingCondition"]
    assert 60 <= stopping["MaxRuntimeInSeconds"] <= 28 * 86400
    assert ("MaxWaitTimeInSeconds" in stopping) == spot
    if spot:
        assert stopping["MaxRuntimeInSeconds"] <= stopping["MaxWaitTimeInSeconds"] <= 28 * 86400
    assert ("KeepAlivePeriodInSeconds" in request["ResourceConfig"]) == (not spot)
    assert {tag["Key"]: tag["Value"] for tag in request["Tags"]}.items() >= tags.items()
    assert len(request["Tags"]) <= 50


class BucketStudyAt:
    """As much of a study as a job's spec needs."""

    def __init__(self, root: str, name: str) -> None:
        self.root, self.name = root, name

    def run_uri(self, trial_id: str) -> str:
        return f"{self.root}/{self.name}/runs/{trial_id}"


class TrialOf:
    """As much of a trial as a job's spec needs."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def test_a_run_uri_of_256_characters_is_sent_and_a_longer_one_refused() -> None:
    uri = f"s3://my-art/{'x' * 222}/artists/runs/3f9a1c2b"
    assert len(uri) == 256
    backend = SageMakerBackend(SETTINGS)
    assert broken(backend.request(replace(SPEC, run_uri=uri))) == []
    with pytest.raises(ConfigError, match=r"expected at most 256 characters .*received 257"):
        backend.request(replace(SPEC, run_uri=uri.replace("x/", "xx/")))


# -- killed submitters ---------------------------------------------------------------------------


def nursery() -> None:
    """Forks a submitter for each line of its input, from a process in which all is imported and parsed once.

    ``{"root": …, "grid": …, "cwd": …, "environment": …, "request": 3, "before": true}`` starts one, which kills itself
    before or after its third request (0: at none), and is answered by its process id; ``7`` waits for that one, and
    is answered by its exit code.
    """
    import functools

    from botocore.loaders import JSONFileLoader

    read = functools.cache(JSONFileLoader().load_file)
    JSONFileLoader.load_file = staticmethod(read)  # type: ignore[method-assign]
    for name in ("s3", "sagemaker"):
        SageMakerBackend(SETTINGS)._client(name)
    for line in sys.stdin:
        told = json.loads(line)
        if isinstance(told, int):
            print(os.waitstatus_to_exitcode(os.waitpid(told, 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            _live(**told)
        print(child, flush=True)


def _live(root: str, grid: str, cwd: str, environment: dict[str, str], request: int, before: bool) -> None:
    """Submits as a process of its own, and ends it."""
    os.environ.update(environment)
    os.chdir(cwd)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    parent = os.getppid()

    def sleep(seconds: float) -> None:
        if os.getppid() != parent:  # the tests were killed: nobody would ever end this process
            os._exit(1)

    try:
        _kill_at(request, before)
        submit(BucketStudyAt(root, ""), load_grid(Path(grid)), sleep)  # type: ignore[arg-type]
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _kill_at(request: int, before: bool) -> None:
    from botocore.httpsession import URLLib3Session

    send, sent = URLLib3Session.send, itertools.count(1)

    def counted(self: Any, message: Any) -> Any:
        is_last = next(sent) == request
        if is_last and before:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = send(self, message)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    URLLib3Session.send = counted  # type: ignore[assignment]


class Nursery:
    """Starts submitters in a moment; each from a folder of its own, as if on several machines."""

    def __init__(self) -> None:
        self.output = Path()
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.jobs.test_sagemaker import nursery; nursery()"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, cloud: Cloud, grid: Path, request: int = 0, before: bool = True, place: str = "laptop") -> int:
        """Starts a submitter and returns its process id."""
        folder = grid.parent / place
        folder.mkdir(exist_ok=True)
        self.output = folder / "output.txt"
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        life = {"root": cloud.root, "grid": str(grid), "cwd": str(folder), "environment": environment}
        return self._ask({**life, "request": request, "before": before})

    def wait(self, process: int) -> int:
        """Returns a submitter's exit code, negative for the signal that ended it."""
        return self._ask(process)

    def said(self) -> str:
        """Returns what the submitters printed that ran where the last one did."""
        return self.output.read_text()

    def close(self) -> None:
        """Ends the process that forks."""
        self._process.communicate()

    def _ask(self, question: object) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def lives() -> Iterator[Nursery]:
    opened = Nursery()
    yield opened
    opened.close()


def names(cloud: Cloud) -> list[str]:
    return [job.name for job in cloud.sagemaker.history]


@pytest.mark.parametrize("before", [True, False])
def test_a_submitter_killed_at_any_one_of_its_requests_is_made_up_for_by_the_next(
    bucket: str, reach: Reach, tmp_path: Path, lives: Nursery, before: bool, amount: Amount, measured: Measured
) -> None:
    cloud, step, trials, killed = Cloud(bucket, seconds=60, list_lag_s=40), amount(8, 1), amount(1, 2), 0
    with reach(account(cloud.sagemaker, clock=SteppingClock(20))):
        for request in itertools.count(1 if before else amount(5, 1), step):
            grid = read_grid(tmp_path, trials, parallel=1).path
            grid.write_text(grid.read_text().replace("study: many", f"study: case{request}"))
            code = lives.wait(lives.start(cloud, grid, request, before))
            assert code in (0, -signal.SIGKILL), lives.said()
            if code == 0:
                break
            killed += 1
            assert lives.wait(lives.start(cloud, grid)) == 0, lives.said()
            started = [name for name in names(cloud) if name.startswith(f"case{request}-")]
            assert len(started) == len(set(started)) == trials and all(name.endswith("-a1") for name in started)
    when = "before" if before else "after"
    measured(f"killed {when} each {'' if step == 1 else '8th '}request, {killed} times: each job started once")


@pytest.mark.parametrize("places", [["laptop"], ["laptop", "desktop"], ["laptop", "laptop"]])
def test_submitters_killed_at_random_start_every_job_exactly_once(
    places: list[str],
    bucket: str,
    reach: Reach,
    tmp_path: Path,
    lives: Nursery,
    amount: Amount,
    measured: Measured,
) -> None:
    trials, kills = amount(24 // len(places), 108), amount(12 // len(places), 100)
    chance, killed = random.Random(len(set(places))), 0
    cloud = Cloud(bucket, seconds=chance.choice([30, 3000]), list_lag_s=60)
    within = 12 + 12 * trials // kills
    grid = read_grid(tmp_path, trials, parallel=trials).path
    with reach(account(cloud.sagemaker, clock=SteppingClock(20))):
        for _ in range(kills):
            started = [
                lives.start(cloud, grid, chance.randint(1, within), chance.choice([True, False]), place)
                for place in places
            ]
            codes = [lives.wait(process) for process in started]
            assert set(codes) <= {0, -signal.SIGKILL}, lives.said()
            killed += codes.count(-signal.SIGKILL)
        assert names(cloud), "the kills came too early to be of interest"
        started = [lives.start(cloud, grid, place=place) for place in places]
        assert [lives.wait(process) for process in started] == [0] * len(places), lives.said()
    assert len(names(cloud)) == len(set(names(cloud))) == trials
    assert all(name.endswith("-a1") for name in names(cloud))
    assert {job.status for job in cloud.sagemaker.history} == {"Completed"}
    assert killed >= kills // 2
    measured(f"{len(places)} submitters in {len(set(places))} places, {killed} kills: {trials} jobs, each once")


@pytest.mark.parametrize("ended", [True, False])
def test_a_plan_that_another_submitter_was_quicker_than_starts_nothing_twice(
    bucket: str, reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    cloud, grid = Cloud(bucket, list_lag_s=30), read_grid(tmp_path, 3, parallel=3)
    with reach(account(cloud.sagemaker)) as aws:
        study, trials = BucketStudy(cloud.root, grid.study), expand(grid, "digest").trials
        backend = backend_at(aws)
        steps = plan(trials, outcomes(study, trials, backend))
        assert [step.action for step in steps] == ["start"] * 3
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        stop = StopRequest()

        def sleep(seconds: float) -> None:
            aws.clock.advance(seconds)
            stop.reason = "" if ended else "SIGINT"

        submit(cloud, grid, sleep, stop)
        monkeypatch.chdir(tmp_path)
        study.refresh()
        shown = BarWatcher(study, 3)
        submission = Submission(study, grid, backend, "s3://my-art/data", "digest", shown, sleep=aws.clock.advance)
        result = submission.run(steps, 3, StopRequest())
    assert [outcome.state for outcome in result.values()] == ["done"] * 3
    assert len(names(cloud)) == 3 and all(name.endswith("-a1") for name in names(cloud))


# -- what fails in passing -----------------------------------------------------------------------


def test_a_job_that_is_not_yet_listed_is_neither_gone_nor_asked_for_one_by_one(reach: Reach) -> None:
    sagemaker = FakeSageMaker(Scripted(seconds=6000), list_lag_s=45)
    with reach(account(sagemaker)) as aws:
        backend = backend_at(aws)
        handles = [backend.submit(spec) for spec in specs(40)]
        for _ in range(8):
            assert all(status.state.alive for status in backend.status(handles))
            aws.clock.advance(backend.poll_s)
        assert aws.most_a_minute("ListTrainingJobs", "DescribeTrainingJob") <= 10


def test_a_job_that_somebody_deleted_has_failed(reach: Reach) -> None:
    with reach(account(FakeSageMaker(Scripted(seconds=10)))) as aws:
        backend = backend_at(aws)
        handle = backend.submit(SPEC)
        aws.clock.advance(500)
        assert backend.status([handle])[0].state is JobState.SUCCEEDED
        backend._client("sagemaker").delete_training_job(TrainingJobName=SPEC.name)
        aws.clock.advance(600)
        (status,) = backend_at(aws).status([handle])
    assert status.state is JobState.FAILED and status.word == "SageMaker no longer knows it"


def test_looks_at_more_jobs_than_a_page_holds_stay_as_rare(reach: Reach, amount: Amount, measured: Measured) -> None:
    count = amount(130, 450)
    with reach(account(FakeSageMaker(Scripted(seconds=60_000)))) as aws:
        backend = backend_at(aws)
        handles = [backend.submit(spec) for spec in specs(count)]
        for _ in range(30):
            assert all(status.state is not JobState.ABSENT for status in backend.status(handles))
            aws.clock.advance(backend.poll_s)
        reads = aws.most_a_minute("ListTrainingJobs", "DescribeTrainingJob")
    assert reads <= 10
    measured(f"{count} jobs: at most {reads} reads a minute")


def test_jobs_of_every_page_are_seen_to_end_however_new_they_are(reach: Reach) -> None:
    with reach(account(FakeSageMaker(Scripted(seconds=10), durations=Durations.none()))) as aws:
        backend = backend_at(aws)
        handles = [backend.submit(spec) for spec in specs(210)]
        aws.clock.advance(20)
        assert {status.state for status in backend.status(handles)} == {JobState.SUCCEEDED}


def test_older_jobs_of_the_study_cost_no_further_pages(reach: Reach) -> None:
    with reach(account(FakeSageMaker(Scripted(seconds=10)))) as aws:
        backend = backend_at(aws)
        for spec in specs(110):
            backend.submit(spec)
            aws.clock.advance(1)
        newest = backend.submit(replace(SPEC, name="artists-ffffffff-a1"))
        aws.requests.clear()
        assert backend.status([newest])[0].state.alive
        assert [request.operation for request in aws.requests] == ["ListTrainingJobs"]


def test_reasons_are_asked_only_of_jobs_that_ended_before_our_eyes(reach: Reach) -> None:
    with reach(account(FakeSageMaker(Scripted(seconds=10, exit_code=1, failure="no such layer")))) as aws:
        backend = backend_at(aws)
        handles = [backend.submit(spec) for spec in specs(20)]
        aws.clock.advance(500)
        assert {status.word for status in backend.status(handles)} == {"no such layer"}
        aws.requests.clear()
        assert {status.state for status in backend_at(aws).status(handles)} == {JobState.FAILED}
        assert [request.operation for request in aws.requests] == ["ListTrainingJobs"]


@pytest.mark.parametrize("what", ["ServiceUnavailable", "InternalFailure", "ThrottlingException"])
def test_reads_that_fail_in_passing_are_repeated(reach: Reach, what: str) -> None:
    failing = itertools.cycle([ServiceError(what, "in passing", 400 if "Throttling" in what else 503)] * 3 + [None])
    with reach(account(FakeSageMaker(Scripted()), before=lambda *_: next(failing))) as aws:
        backend = backend_at(aws)
        assert backend.status([backend.submit(SPEC)])[0].state.alive


def test_a_network_that_is_away_for_a_while_fails_nothing(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError
    from botocore.httpsession import URLLib3Session

    send, kinds, away_until = (
        URLLib3Session.send,
        itertools.cycle([EndpointConnectionError, ConnectTimeoutError]),
        [0.0],
    )

    def unreliable(self: Any, message: Any) -> Any:
        if aws.clock.now() < away_until[0]:
            raise next(kinds)(endpoint_url=message.url)
        return send(self, message)

    monkeypatch.setattr(URLLib3Session, "send", unreliable)
    with reach(account(FakeSageMaker(Scripted(seconds=6000)))) as aws:
        backend = backend_at(aws)
        handle = backend.submit(SPEC)
        away_until[0] = aws.clock.now() + 500
        assert backend.status([handle])[0].state.alive
        assert aws.clock.now() >= away_until[0]
        away_until[0] = aws.clock.now() + 50
        assert backend.submit(replace(SPEC, name="artists-00000000-a1")).name == "artists-00000000-a1"
        away_until[0] = aws.clock.now() + 5000
        with pytest.raises(QuotaError, match="artists-11111111-a1: "):
            backend.submit(replace(SPEC, name="artists-11111111-a1"))


def test_a_server_that_never_answers_is_told_soon_with_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    clock = Clock()
    began = clock.now()
    backend = SageMakerBackend(SETTINGS, sleep=clock.advance, clock=clock.now)
    with pytest.raises(ConfigError, match=r"AWS cannot be used in us-east-1: .*127\.0\.0\.1:1"):
        backend.check()
    assert clock.now() - began <= 60


def test_credentials_that_are_renewed_while_we_wait_are_taken_up(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    with reach(account(FakeSageMaker(Scripted(seconds=60_000)))) as aws:
        monkeypatch.setenv("AWS_SESSION_TOKEN", "token 0")
        rotations = 0

        def sleep(seconds: float) -> None:
            aws.clock.advance(seconds)
            monkeypatch.setenv("AWS_SESSION_TOKEN", f"token {rotations}")

        backend = SageMakerBackend(SETTINGS, sleep=sleep, clock=aws.clock.now)
        handles = [backend.submit(SPEC)]
        for rotations in range(1, 21):
            aws.expire(f"token {rotations - 1}")
            if rotations % 2:
                handles.append(backend.submit(specs(rotations)[-1]))
            assert all(status.state.alive for status in backend.status(handles))


def test_credentials_that_never_worked_are_told_at_once(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old")
    with reach(account(FakeSageMaker(Scripted()))) as aws:
        aws.expire("old")
        with pytest.raises(ConfigError, match=f"{SPEC.name}: the AWS credentials of this machine are not valid"):
            backend_at(aws).submit(SPEC)
        assert len(aws.requests) == 0


@pytest.mark.parametrize(
    "error",
    [
        exceptions.UnauthorizedSSOTokenError(),
        exceptions.LoginRefreshRequired(),
        exceptions.TokenRetrievalError(provider="sso", error_msg="Token has expired and refresh failed"),
        exceptions.CredentialRetrievalError(provider="custom-process", error_msg="exit 1"),
        exceptions.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_login_that_has_run_out_is_told_as_such(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(self: Any, message: Any) -> Any:
        raise error

    monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", refuse)
    with pytest.raises(ConfigError, match="the AWS credentials of this machine are not valid in us-east-1: "):
        SageMakerBackend(SETTINGS).check()


def test_a_refusal_for_good_is_told_with_the_job_and_never_repeated(reach: Reach) -> None:
    refused = ServiceError("ValidationException", "1 validation error detected: no such role")
    with reach(account(FakeSageMaker(Scripted()), before=lambda *_: refused)) as aws:
        with pytest.raises(BackendError, match=f"{SPEC.name}: AWS refused: 1 validation error"):
            backend_at(aws).submit(SPEC)
        assert len(aws.requests) == 1


# -- stopping ------------------------------------------------------------------------------------


def test_c13_a_job_whose_start_a_stop_overtook_is_stopped_as_the_others_are(
    bucket: str, reach: Reach, tmp_path: Path
) -> None:
    cloud, grid = Cloud(bucket, seconds=10_000), read_grid(tmp_path, 30, parallel=30)

    def before(service: str, operation: str, params: Any) -> None:
        if operation == "CreateTrainingJob" and len(cloud.sagemaker.history) == 3:
            BucketStudy(cloud.root, grid.study).ask_to_stop()

    with reach(account(cloud.sagemaker, before=before)) as aws:
        stop = StopRequest()
        assert submit(cloud, grid, aws.clock.advance, stop) == {}
        aws.clock.advance(200)
        assert stop.reason == "jobs stop"
        assert 4 <= len(cloud.sagemaker.history) <= 15, "so many were started before the study was looked at"
        assert {cloud.sagemaker.job(name).status for name in names(cloud)[3:]} == {"Stopped"}


def test_c13_stopping_a_job_that_was_never_started_is_harmless(reach: Reach) -> None:
    with reach(account(FakeSageMaker(Scripted()))) as aws:
        backend_at(aws).stop(JobHandle("sagemaker", SPEC.name, "", SPEC.trial_id, 1, SPEC.run_uri))


# -- the command line ----------------------------------------------------------------------------

CLOUD = """
bucket: {bucket}
region: {region}
account: "{account}"
role_arn: arn:aws:iam::{account}:role/artclf
image: 123456789012.dkr.ecr.{region}.amazonaws.com/artclf@sha256:0
poll_seconds: 1
"""


class Laptop:
    """A folder with a grid and cloud.yaml, in which commands run as processes of their own."""

    def __init__(self, folder: Path, grid: Path, proxy: FaultProxy, environment: Mapping[str, str]) -> None:
        self.folder, self.grid, self.proxy = folder, grid, proxy
        self.started: list[subprocess.Popen[str]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            **environment,
            "AWS_ENDPOINT_URL_S3": proxy.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(folder),
            "PYTHONPATH": str(PROJECT),
        }

    def settings(self, bucket: str, region: str = REGION, account: str = ACCOUNT) -> None:
        text = CLOUD.format(bucket=bucket, region=region, account=account)
        (self.folder / "cloud.yaml").write_text(text)

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts a command, told by its words."""
        line = [sys.executable, "-m", "jobs", command, str(self.grid), *arguments, "--backend", "sagemaker"]
        process = subprocess.Popen(
            line,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        """Ends what a test that failed left running."""
        for process in self.started:
            if process.returncode is None:
                process.kill()
                process.communicate()

    def run(self, command: str, *arguments: str, code: int = 0) -> str:
        """Runs a command, asserts its exit code and returns what it printed."""
        return self.ended(self.start(command, *arguments), code)

    def ended(self, process: subprocess.Popen[str], code: int = 0) -> str:
        output, errors = process.communicate()
        assert process.returncode == code, output + errors
        return output + errors

    def refused(self, command: str, *arguments: str, code: int = 2) -> str:
        """Runs a command that is refused with an exit code, and returns the one line it says why in."""
        process = self.start(command, *arguments)
        _, errors = process.communicate()
        assert process.returncode == code, errors
        (line,) = errors.splitlines()
        assert line.startswith("error: ")
        return line

    @property
    def wrote(self) -> list[str]:
        """The keys of what was put into the bucket, without the probe that every submit makes."""
        puts = [request.key for request in self.proxy.requests if request.operation == "PutObject"]
        return [key for key in puts if "artclf-probe" not in key]


Open = Callable[..., Laptop]


@pytest.fixture
def laptop(moto_server: S3Server, bucket: str, tmp_path: Path, tiny_set: Dataset) -> Iterator[Open]:
    """Returns what makes a laptop whose commands reach a stand-in."""
    with FaultProxy(moto_server.url, moto_server.credentials) as proxy, contextlib.ExitStack() as ended:

        def opened(aws: FakeAws, folder: Path = tmp_path) -> Laptop:
            folder.mkdir(exist_ok=True)
            made = Laptop(folder, write_grid(tmp_path, tiny_set, "0, 1, 2"), proxy, aws.environment())
            ended.callback(made.close)
            made.settings(bucket)
            return made

        yield opened


def creates(aws: FakeAws) -> list[dict[str, Any]]:
    return [request.params for request in aws.requests if request.operation == "CreateTrainingJob"]


COMMANDS = ["plan", "submit", "status", "logs", "stop", "report", "reap"]


@pytest.mark.parametrize("command", COMMANDS)
def test_c02_without_credentials_every_command_ends_before_any_request(bucket: str, laptop: Open, command: str) -> None:
    with account(FakeSageMaker(Scripted())) as aws:
        here = laptop(aws)
        del here.environment["AWS_ACCESS_KEY_ID"], here.environment["AWS_SECRET_ACCESS_KEY"]
        said = here.refused(command, *(["--yes"] if command == "submit" else []))
        assert "no AWS credentials found. Log in (aws sso login)" in said
        assert aws.requests == [] and here.proxy.requests == []


def test_c03_credentials_of_another_account_start_and_write_nothing(bucket: str, laptop: Open) -> None:
    with account(FakeSageMaker(Scripted())) as aws:
        here = laptop(aws)
        here.settings(bucket, account="999999999999")
        for command in (["submit", "--yes"], ["plan"]):
            said = here.refused(*command)
            assert "of the account 123456789012, cloud.yaml expects 999999999999" in said
        assert creates(aws) == [] and here.wrote == []


def test_c03_another_region_starts_and_writes_nothing(bucket: str, laptop: Open) -> None:
    with account(FakeSageMaker(Scripted())) as aws:
        here = laptop(aws)
        here.settings(bucket, region="eu-west-1")
        assert "not valid in eu-west-1: Credential should be scoped to a valid region" in here.refused(
            "submit", "--yes"
        )
        assert creates(aws) == [] and here.wrote == []


REFUSALS = {
    "c04": (
        ServiceError("SignatureDoesNotMatch", "Signature expired: 20270104T090000Z is now earlier than …", 403),
        "clock",
    ),
    "denied": (
        ServiceError("AccessDenied", "User: arn:aws:iam::1:user/x is not authorized to perform: sts:Get…", 403),
        "lack a right: User: arn:aws:iam::1:user/x is not authorized to perform",
    ),
    "invalid": (
        ServiceError("InvalidClientTokenId", "The security token included in the request is invalid.", 403),
        "are not valid",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_credentials_that_are_refused_start_and_write_nothing(bucket: str, laptop: Open, name: str) -> None:
    refusal, words = REFUSALS[name]
    with account(FakeSageMaker(Scripted()), before=lambda *_: refusal) as aws:
        here = laptop(aws)
        assert words in here.refused("submit", "--yes")
        assert creates(aws) == [] and here.wrote == []


def test_an_expired_token_starts_and_writes_nothing(bucket: str, laptop: Open) -> None:
    with account(FakeSageMaker(Scripted())) as aws:
        aws.expire("yesterdays")
        here = laptop(aws)
        here.environment["AWS_SESSION_TOKEN"] = "yesterdays"
        assert "are not valid in us-east-1: The security token included in the request is expired" in here.refused(
            "submit", "--yes"
        )
        assert creates(aws) == [] and here.wrote == []


def test_a_right_that_is_missing_for_creates_is_named_with_the_job(bucket: str, laptop: Open) -> None:
    def before(service: str, operation: str, params: Any) -> ServiceError | None:
        denied = ServiceError("AccessDeniedException", "User x is not authorized to perform: sagemaker:Create…")
        return denied if operation == "CreateTrainingJob" else None

    with account(FakeSageMaker(Scripted()), before=before) as aws:
        said = laptop(aws).refused("submit", "--yes")
        assert "-a1: the AWS credentials of this machine lack a right: User x is not authorized" in said
        assert len(creates(aws)) == 1


def test_without_a_terminal_and_yes_nothing_is_started_or_written(bucket: str, laptop: Open) -> None:
    with account(FakeSageMaker(Scripted())) as aws:
        here = laptop(aws)
        assert "Start 3 jobs on sagemaker? Nobody is there to answer; say --yes" in here.refused("submit")
        assert creates(aws) == [] and here.wrote == []


def test_a_place_that_the_jobs_could_not_write_to_is_refused(bucket: str, laptop: Open) -> None:
    with account(FakeSageMaker(Scripted())) as aws:
        here = laptop(aws)
        assert "needs s3://BUCKET/PREFIX" in here.refused("submit", "--yes", "--root", "studies")
        assert aws.requests == [] and here.proxy.requests == []
        long = f"s3://{bucket}/{'long/' * 50}x"
        assert "at most 256 characters" in here.refused("submit", "--yes", "--root", long)
        assert creates(aws) == [] and here.wrote == []
        (here.folder / "cloud.yaml").unlink()
        assert "cloud.yaml: the cloud backends need this file" in here.refused("status")


def test_a_machine_that_sagemaker_does_not_offer_is_refused_before_anything_goes_to_the_bucket(
    bucket: str, laptop: Open
) -> None:
    with account(FakeSageMaker(Scripted())) as aws:
        here = laptop(aws)
        resources = {"instance": "g4dn.metal"}
        here.grid.write_text(yaml.safe_dump({**yaml.safe_load(here.grid.read_text()), "resources": resources}))
        assert "SageMaker does not offer g4dn.metal" in here.refused("submit", "--yes")
        assert creates(aws) == [] and here.wrote == []


def test_an_account_that_may_have_no_such_machine_is_told_so_and_not_kept_waiting(bucket: str, laptop: Open) -> None:
    sagemaker = FakeSageMaker(Scripted(), quotas={SPOT_QUOTA: 0})
    with account(sagemaker) as aws:
        said = laptop(aws).refused("submit", "--yes", code=4)
        assert f"this account may have 0 of '{SPOT_QUOTA}', so waiting is of no use. Ask for more" in said
    assert sagemaker.jobs == {}


def test_a_plan_prints_exactly_what_a_submit_then_sends(bucket: str, laptop: Open) -> None:
    cloud = Cloud(bucket, seconds=20)
    with account(cloud.sagemaker, clock=SteppingClock(60)) as aws:
        here = laptop(aws)
        printed = here.run("plan", "--requests")
        planned = json.loads(printed[printed.index("\n[") :])
        assert creates(aws) == [] and here.wrote == []
        assert here.run("submit", "--dry-run", "--requests") == printed
        said = here.run("submit", "--yes")
        assert creates(aws) == planned and len(planned) == 3
        assert said.count("\nstarts ") == 3 and said.count("\ndone ") == 3 and "report.html" in said
        assert "Nothing to start" in here.run("submit", "--yes")
        assert len(creates(aws)) == 3


def test_a_plan_after_a_killed_submit_prints_what_the_next_one_sends(bucket: str, laptop: Open) -> None:
    cloud = Cloud(bucket, seconds=20)
    killed: list[str] = []

    def before(service: str, operation: str, params: Any) -> Lost | None:
        if operation == "CreateTrainingJob" and not killed:
            process.send_signal(signal.SIGKILL)
            killed.append(params["TrainingJobName"])
            return Lost.REQUEST
        return None

    with account(cloud.sagemaker, clock=SteppingClock(60), before=before) as aws:
        here = laptop(aws)
        process = here.start("submit", "--yes")
        here.ended(process, -signal.SIGKILL)
        planned = json.loads(here.run("plan", "--json", "--requests"))
        aws.requests.clear()
        here.run("submit", "--yes")
        assert creates(aws) == [step["request"] for step in planned]


def test_status_logs_report_and_reap_tell_of_a_study_in_the_cloud(bucket: str, laptop: Open) -> None:
    cloud = Cloud(bucket, seconds=20)
    cloud.sagemaker = FakeSageMaker(
        lambda job: replace(cloud._work(job), lines=("a line of the log", "and another")), durations=Durations.none()
    )
    with account(cloud.sagemaker, clock=SteppingClock(10)) as aws:
        here = laptop(aws)
        assert "nothing was submitted yet" in here.refused("stop")
        here.run("submit", "--yes")
        trial = cloud.sagemaker.history[0].name.split("-")[1]
        assert "little: done 3/3" in here.run("status")
        states = {row["trial_id"]: row["state"] for row in json.loads(here.run("status", "--json"))}
        assert set(states.values()) == {"done"} and len(states) == 3
        assert "a line of the log\nand another\n" in here.run("logs", trial[:5])
        assert "report.html" in here.run("report")
        assert (here.folder / "studies" / "s3" / bucket / "studies" / "little" / "report.html").exists()
        assert "Nothing was left behind" in here.run("reap")
        assert "Nothing is running" in here.run("stop")
        here.grid.write_text(here.grid.read_text().replace("[0, 1, 2]", "[7]"))
        assert "little: done 0/1" in here.run("status")


def test_s15_reap_shows_unfinished_uploads_and_runs_of_earlier_grids_and_removes_them_when_told(
    bucket: str, laptop: Open, moto_server: S3Server
) -> None:
    cloud, client = Cloud(bucket, seconds=20), moto_server.client
    with account(cloud.sagemaker, clock=SteppingClock(10)) as aws:
        here = laptop(aws)
        here.run("submit", "--yes")
        study = next(key for key in here.wrote if key.endswith("study.json")).removesuffix("study.json")
        client.put_object(Bucket=bucket, Key=f"{study}runs/0ldgrid0/config.json", Body=b"{}")
        upload = client.create_multipart_upload(Bucket=bucket, Key=f"{study}runs/0ldgrid0/model.keras")
        client.upload_part(
            Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"], PartNumber=1, Body=bytes(5 << 20)
        )
        client.create_multipart_upload(Bucket=bucket, Key=f"{study.rsplit('/', 2)[0]}/.shared/weights/x/y.h5")

        def there() -> tuple[set[str], int]:
            objects = client.list_objects_v2(Bucket=bucket)["Contents"]
            uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
            return {item["Key"] for item in objects}, len(uploads)

        before = there()
        said = here.run("reap")
        assert f"s3://{bucket}/{study}runs/0ldgrid0" in said and "unfinished upload, 20" in said
        assert "Nothing was removed. Remove all of it with --yes." in said and there() == before
        assert "Removed 3." in here.run("reap", "--yes")  # what is shared too: moto says that all is years old
        assert there() == (before[0] - {f"{study}runs/0ldgrid0/config.json"}, 0)
        assert "Nothing was left behind" in here.run("reap")


def test_reap_leaves_what_a_job_at_work_is_uploading_alone(bucket: str, laptop: Open, moto_server: S3Server) -> None:
    cloud, client = Cloud(bucket, seconds=100_000), moto_server.client
    with account(cloud.sagemaker) as aws:
        here = laptop(aws)
        process = here.start("submit", "--yes")
        aws.wait_for(lambda: sum(request.operation == "ListTrainingJobs" for request in aws.requests) >= 2)
        process.send_signal(signal.SIGINT)
        here.ended(process, 75)
        runs = [key for key in here.wrote if key.endswith("config.json")]
        client.create_multipart_upload(Bucket=bucket, Key=runs[0].replace("config.json", "model.keras"))
        assert "Nothing was left behind" in here.run("reap")


@pytest.mark.parametrize("answer", ["", "n\n", "what?\n"], ids=["Ctrl-D", "no", "anything else"])
def test_whoever_does_not_say_yes_starts_nothing(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.__main__ import _ask

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    with pytest.raises(ConfigError, match="nothing was started"):
        _ask("Start 3 jobs on sagemaker?", yes=False)


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


def test_ctrl_c_starts_nothing_more_lets_the_jobs_go_on_and_says_how_to_go_on(bucket: str, laptop: Open) -> None:
    cloud = Cloud(bucket, seconds=10_000)
    with account(cloud.sagemaker) as aws:
        here = laptop(aws)
        process = here.start("submit", "--yes")
        aws.wait_for(lambda: sum(request.operation == "ListTrainingJobs" for request in aws.requests) >= 2)
        process.send_signal(signal.SIGINT)
        said = here.ended(process, 75)
        assert "nothing more is started; running trials go on: " in said
        assert "running jobs go on. Run the same submit again" in said
        assert len(creates(aws)) == 2 and {job.status for job in cloud.sagemaker.history} == {"InProgress"}
        assert not any(request.operation == "StopTrainingJob" for request in aws.requests)


def test_ctrl_c_is_heard_while_the_service_takes_no_calls(bucket: str, laptop: Open) -> None:
    def before(service: str, operation: str, params: Any) -> ServiceError | None:
        return ServiceError("ThrottlingException", "Rate exceeded") if operation == "CreateTrainingJob" else None

    with account(Cloud(bucket).sagemaker, before=before) as aws:
        here = laptop(aws)
        process = here.start("submit", "--yes")
        aws.wait_for(lambda: len(creates(aws)) >= 2)
        process.send_signal(signal.SIGINT)
        said = here.ended(process, 75)
        assert "stopped by SIGINT" in said and "Traceback" not in said
        assert len(creates(aws)) <= 4


def test_jobs_stop_ends_the_jobs_and_every_submitter_on_any_machine(bucket: str, laptop: Open, tmp_path: Path) -> None:
    cloud = Cloud(bucket, seconds=10_000)
    with account(cloud.sagemaker, clock=SteppingClock(60)) as aws:
        here = laptop(aws)
        process = here.start("submit", "--yes")
        aws.wait_for(lambda: sum(request.operation == "ListTrainingJobs" for request in aws.requests) >= 2)
        elsewhere = laptop(aws, tmp_path / "elsewhere")
        said = elsewhere.run("stop")
        assert "Asked 2 running trials to save and end" in said and said.count(": interrupted, 2 epochs saved") == 2
        assert f"Go on with: python -m jobs submit {here.grid} --backend sagemaker" in said
        assert "stopped" in here.ended(process, 75)
        assert len(creates(aws)) == 2
        assert sum(request.operation == "StopTrainingJob" for request in aws.requests) == 2
        assert "Nothing is running" in elsewhere.run("stop")
        assert here.run("plan").count("continue at 2/2") == 2


def test_jobs_are_stopped_though_the_record_of_the_study_is_damaged(
    bucket: str, laptop: Open, moto_server: S3Server
) -> None:
    cloud = Cloud(bucket, seconds=10_000)
    with account(cloud.sagemaker, clock=SteppingClock(60)) as aws:
        here = laptop(aws)
        process = here.start("submit", "--yes")
        aws.wait_for(lambda: sum(request.operation == "ListTrainingJobs" for request in aws.requests) >= 2)
        process.send_signal(signal.SIGINT)
        here.ended(process, 75)
        key = next(key for key in here.wrote if key.endswith("study.json"))
        moto_server.client.put_object(Bucket=bucket, Key=key, Body=b"[]")
        said = here.run("stop")
        assert "study.json: not in the form of a study" in said
        assert "Asked 2 running trials to save and end" in said and said.count(": interrupted, 2 epochs saved") == 2


# -- secrets -------------------------------------------------------------------------------------

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED00000KEY1",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+key/2222222222222222222222",
    "AWS_SESSION_TOKEN": "planted-session-token-3333333333333333",
    "HF_TOKEN": "hf_planted4444444444444444",
    "KAGGLE_KEY": "planted5555555555555555",
    "GITHUB_TOKEN": "ghp_planted6666666666666666",
    "WANDB_API_KEY": "planted7777777777777777",
    "HTTPS_PROXY": "http://user:planted8888888888888888@127.0.0.1:1",
    "PIP_INDEX_URL": "https://user:planted9999999999999999@127.0.0.1:1/simple",
    "DATABASE_PASSWORD": "planted-aaaaaaaaaaaaaaaa",
}
FILES = {
    ".aws/credentials": "[other]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = planted-bbbbbbbbbbbb\n",
    ".netrc": "machine 127.0.0.1 login user password planted-cccccccccccc\n",
}
SECRETS = [
    *(value.removeprefix("http://user:").removeprefix("https://user:").split("@")[0] for value in PLANTED.values()),
    *("planted-bbbbbbbbbbbb", "planted-cccccccccccc"),
]


def secrets_in(text: str | bytes) -> list[str]:
    shown = text.decode(errors="replace") if isinstance(text, bytes) else text
    return [secret for secret in SECRETS if secret in shown]


def test_twelve_planted_secrets_reach_no_output_request_object_log_or_report_even_at_debug(
    bucket: str, laptop: Open, moto_server: S3Server, tmp_path: Path, measured: Measured
) -> None:
    assert len(SECRETS) == 12
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / "sitecustomize.py").write_text("import logging\nlogging.basicConfig(level=logging.DEBUG)\n")
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    in_container = {**PLANTED, "AWS_ENDPOINT_URL_S3": moto_server.url, "PYTHONPATH": str(tmp_path / "debug")}
    del in_container["HTTPS_PROXY"]
    logs = FakeLogs()
    sagemaker = FakeSageMaker(EntryPoint(in_container), durations=Durations.none())
    with FakeAws(sagemaker, logs, FakeSts()) as aws:
        aws.access_keys = {PLANTED["AWS_ACCESS_KEY_ID"]}
        here = laptop(aws)
        here.grid.write_text(here.grid.read_text().replace("[0, 1, 2]", "[0]").replace("epochs: 2", "epochs: 1"))
        here.environment |= {**PLANTED, "PYTHONPATH": f"{tmp_path / 'debug'}:{PROJECT}"}
        said = here.run("submit", "--yes")
        assert "DEBUG:" in said, "the level is not what the test is about"
        trial = sagemaker.history[0].name.split("-")[1]
        for command in ("plan", "status", "report", "reap"):
            said += here.run(command, *(["--requests"] if command == "plan" else []))
        said += here.run("logs", trial)
    lines = logs.lines(LOG_GROUP)
    objects = moto_server.client.list_objects_v2(Bucket=bucket)["Contents"]
    found = {
        "output": secrets_in(said),
        "requests": secrets_in(json.dumps([request.params for request in aws.requests])),
        "log": secrets_in("\n".join(lines)),
    }
    for item in objects:
        answer = moto_server.client.get_object(Bucket=bucket, Key=item["Key"])
        found[item["Key"]] = secrets_in(answer["Body"].read()) + secrets_in(json.dumps(answer["Metadata"]))
    for path in [*(tmp_path / "studies").rglob("*"), *(tmp_path / "cache").rglob("*")]:
        found[str(path)] = secrets_in(path.read_bytes()) if path.is_file() else []
    assert {place: secrets for place, secrets in found.items() if secrets} == {}
    assert sagemaker.history[0].status == "Completed" and any("report.html" in item["Key"] for item in objects)
    measured(
        f"12 secrets, {len(said.splitlines()):,} lines of output at DEBUG, {len(aws.requests)} requests, "
        f"{len(lines):,} log lines, {len(objects)} objects: 0 hits"
    )


REVEALING = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method.\n\nThe Canonical String for this request should have been\n'POST\n/\n\nhost:sagemaker\n"
    f"x-amz-security-token:{PLANTED['AWS_SESSION_TOKEN']}\n'"
)


@pytest.mark.parametrize("code", ["InvalidSignatureException", "SignatureDoesNotMatch"])
def test_a_refusal_that_quotes_our_token_is_told_without_it(
    reach: Reach, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", PLANTED["AWS_SESSION_TOKEN"])
    with reach(account(FakeSageMaker(Scripted()), before=lambda *_: ServiceError(code, REVEALING, 403))) as aws:
        backend = backend_at(aws)
        for call in (backend.check, lambda: backend.submit(SPEC)):
            with pytest.raises(
                ConfigError, match="are not valid in us-east-1: The request signature we calculated"
            ) as refused:
                call()
            assert secrets_in(str(refused.value)) == []


def test_a_proxy_that_is_not_there_is_told_without_its_password(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PLANTED["HTTPS_PROXY"])
    monkeypatch.setenv("http_proxy", PLANTED["HTTPS_PROXY"])
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:2")
    clock = Clock()
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1") as refused:
        SageMakerBackend(SETTINGS, sleep=clock.advance, clock=clock.now).check()
    assert secrets_in(str(refused.value)) == []
    storage = S3Storage(f"s3://{bucket}/studies", sleep=clock.advance, clock=clock.now)
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:1") as not_reached:
        list(storage.entries())
    assert secrets_in(str(not_reached.value)) == []
