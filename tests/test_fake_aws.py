"""The stand-in for AWS held against what AWS documents, through real clients over HTTP."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import psutil
import pytest
from botocore import UNSIGNED, xform_name
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError
from botocore.model import ListShape, MapShape, Shape, StructureShape

from tests import moto_server
from tests.fake_aws.clock import Clock, ScaledClock, SteppingClock
from tests.fake_aws.logs import FakeLogs
from tests.fake_aws.model import broken_rules, compiled_pattern, service_model
from tests.fake_aws.protocols import ServiceError
from tests.fake_aws.sagemaker import LOG_GROUP, FakeSageMaker
from tests.fake_aws.server import FakeAws, Lost
from tests.fake_aws.sts import FakeSts
from tests.fake_aws.training_job import Durations, Job
from tests.fake_aws.workloads import EntryPoint, Image, Scripted

ROLE = "arn:aws:iam::123456789012:role/artclf"
SPOT_QUOTA = "ml.g4dn.xlarge for spot training job usage"


@pytest.fixture
def start() -> Iterator[Callable[..., FakeAws]]:
    """Returns what opens an account, SageMaker with jobs of a minute where the test names no other."""
    opened: list[FakeAws] = []

    def start(sagemaker: FakeSageMaker | None = None, logs: FakeLogs | None = None, **more: Any) -> FakeAws:
        aws = FakeAws(sagemaker or FakeSageMaker(Scripted()), logs or FakeLogs(), FakeSts(), **more)
        opened.append(aws.__enter__())
        return aws

    yield start
    for aws in opened:
        aws.__exit__(None, None, None)


@cache
def session() -> Any:
    """Returns the session of all clients here: it reads each service's model once."""
    return boto3.session.Session()


def client(aws: FakeAws, service: str = "sagemaker", attempts: int = 1, **more: Any) -> Any:
    config = Config(retries={"total_max_attempts": attempts, "mode": "standard"}, parameter_validation=False)
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": aws.region}
    return session().client(service, endpoint_url=aws.url, config=config, **{**keys, **more})


def request(name: str = "artists-3f9a1c2b-a1", **changes: Any) -> dict[str, Any]:
    """Returns a request as the backend makes it; ``a__b=v`` changes a member inside another, None takes it away."""
    whole: dict[str, Any] = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/artclf:1",
            "TrainingInputMode": "File",
            "ContainerArguments": ["--run-uri", "s3://bucket/study/runs/3f9a1c2b"],
            "MetricDefinitions": [{"Name": "val_accuracy", "Regex": "val_accuracy ([0-9.]+)"}],
        },
        "RoleArn": ROLE,
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/study/models/"},
        "ResourceConfig": {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200},
        "EnableManagedSpotTraining": True,
        "Tags": [{"Key": "artclf:study", "Value": "artists"}],
        "Environment": {"ARTCLF_JOB": name},
    }
    for path, value in changes.items():
        inside, *_, last = [whole, *path.split("__")]
        for part in path.split("__")[:-1]:
            inside = inside[part]
        if value is None:
            del inside[last]
        else:
            inside[last] = value
    return whole


ON_DEMAND: dict[str, Any] = {"EnableManagedSpotTraining": False, "StoppingCondition__MaxWaitTimeInSeconds": None}


def refused(ask: Callable[..., Any], **params: Any) -> tuple[str, str]:
    """Returns the code and the message that a request is refused with."""
    with pytest.raises(ClientError) as caught:
        ask(**params)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


def create(aws: FakeAws, *names: str, **changes: Any) -> None:
    sagemaker = client(aws)
    for name in names or ("artists-3f9a1c2b-a1",):
        sagemaker.create_training_job(**request(name, **changes))


def describe(aws: FakeAws, name: str = "artists-3f9a1c2b-a1") -> dict[str, Any]:
    answer: dict[str, Any] = client(aws).describe_training_job(TrainingJobName=name)
    return answer


def words(aws: FakeAws, name: str = "artists-3f9a1c2b-a1") -> list[str]:
    return [transition["Status"] for transition in describe(aws, name)["SecondaryStatusTransitions"]]


def played(aws: FakeAws) -> FakeSageMaker:
    service = aws.services["sagemaker"]
    assert isinstance(service, FakeSageMaker)
    return service


# -- who asks, and how ---------------------------------------------------------------------------


def test_sts_tells_the_account(start: Callable[..., FakeAws]) -> None:
    assert client(start(), "sts").get_caller_identity()["Account"] == "123456789012"


@pytest.mark.parametrize(
    ("service", "code"), [("sagemaker", "UnrecognizedClientException"), ("sts", "InvalidClientTokenId")]
)
def test_an_unknown_key_is_refused_in_the_words_of_the_service(
    start: Callable[..., FakeAws], service: str, code: str
) -> None:
    stranger = client(start(), service, aws_access_key_id="stranger")
    ask = stranger.list_training_jobs if service == "sagemaker" else stranger.get_caller_identity
    assert refused(ask) == (code, "The security token included in the request is invalid.")


@pytest.mark.parametrize(("service", "code"), [("sagemaker", "ExpiredTokenException"), ("sts", "ExpiredToken")])
def test_a_session_token_works_until_it_expires(start: Callable[..., FakeAws], service: str, code: str) -> None:
    aws = start()
    visitor = client(aws, service, aws_session_token="short-lived")
    ask = visitor.list_training_jobs if service == "sagemaker" else visitor.get_caller_identity
    ask()
    aws.expire("short-lived")
    assert refused(ask)[0] == code


def test_a_request_for_another_region_or_without_a_signature_is_refused(start: Callable[..., FakeAws]) -> None:
    aws = start()
    assert refused(client(aws, region_name="eu-west-1").list_training_jobs)[0] == "InvalidSignatureException"
    unsigned = session().client(
        "sagemaker", endpoint_url=aws.url, region_name="us-east-1", config=Config(signature_version=UNSIGNED)
    )
    assert refused(unsigned.list_training_jobs)[0] == "MissingAuthenticationTokenException"


def test_the_environment_leads_botocore_here(start: Callable[..., FakeAws], monkeypatch: pytest.MonkeyPatch) -> None:
    aws = start()
    for name, value in aws.environment().items():
        monkeypatch.setenv(name, value)
    fresh = boto3.session.Session()
    fresh.client("sagemaker").list_training_jobs()
    fresh.client("sts").get_caller_identity()
    assert refused(fresh.client("logs").describe_log_streams, logGroupName=LOG_GROUP)[0] == "ResourceNotFoundException"
    assert [r.service for r in aws.requests] == ["sagemaker", "sts", "logs"]


def test_an_operation_that_is_not_played_says_so(start: Callable[..., FakeAws]) -> None:
    code, message = refused(client(start()).list_models)
    assert code == "UnknownOperationException"
    assert "plays no sagemaker.ListModels" in message and "CreateTrainingJob" in message


def test_requests_are_recorded_with_their_fake_time_and_outcome(start: Callable[..., FakeAws]) -> None:
    aws = start(clock=SteppingClock(30))
    create(aws)
    refused(client(aws).create_training_job, **request())
    recorded = [(r.operation, r.outcome) for r in aws.requests]
    assert recorded == [("CreateTrainingJob", "ok"), ("CreateTrainingJob", "ResourceInUse")]
    assert aws.requests[0].params == request()
    assert aws.requests[1].time - aws.requests[0].time == 30
    assert aws.most_a_minute() == 2 and aws.most_a_minute("ListTrainingJobs") == 0


def test_a_hook_can_refuse_what_would_be_carried_out(start: Callable[..., FakeAws]) -> None:
    aws = start(before=lambda service, operation, params: ServiceError("InternalFailure", "try again", 500))
    assert refused(client(aws).create_training_job, **request())[0] == "InternalFailure"
    assert not played(aws).jobs


@pytest.mark.parametrize(("lost", "jobs"), [(Lost.ANSWER, 1), (Lost.REQUEST, 0)])
def test_a_lost_answer_leaves_the_job_and_a_lost_request_none(
    start: Callable[..., FakeAws], lost: Lost, jobs: int
) -> None:
    aws = start(before=lambda service, operation, params: lost)
    with pytest.raises(ConnectionClosedError):
        create(aws)
    assert len(played(aws).jobs) == jobs
    assert [r.outcome for r in aws.requests] == ["lost"]


def test_a_client_that_tries_again_after_a_lost_answer_meets_its_own_job(start: Callable[..., FakeAws]) -> None:
    faults = itertools.chain([Lost.ANSWER], itertools.repeat(None))
    aws = start(before=lambda service, operation, params: next(faults))
    assert refused(client(aws, attempts=3).create_training_job, **request())[0] == "ResourceInUse"


def test_a_stand_in_that_answers_against_the_model_is_found_out() -> None:
    class Wrong(FakeSts):
        def get_caller_identity(self, params: dict[str, Any], now: float) -> dict[str, Any]:
            return {"Account": 7}

    with (
        pytest.raises(AssertionError, match=r"itself broke[\s\S]*at 'account'[\s\S]*of type string"),
        FakeAws(Wrong()) as aws,
    ):
        refused(client(aws, "sts").get_caller_identity)


# -- what a request must keep --------------------------------------------------------------------

LONG = "x" * 2501
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "underscore in the name": (
        {"TrainingJobName": "art_ists"},
        "1 validation error detected: Value 'art_ists' at 'trainingJobName' failed to satisfy constraint: "
        "Member must satisfy regular expression pattern: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}",
    ),
    "dash at the end": ({"TrainingJobName": "artists-"}, "regular expression"),
    "64 characters": ({"TrainingJobName": "a" * 64}, "Member must have length less than or equal to 63"),
    "no role": ({"RoleArn": None}, "Value null at 'roleArn' failed to satisfy constraint: Member must not be null"),
    "not a role": ({"RoleArn": "arn:aws:iam::1234:role/artclf"}, "at 'roleArn' failed to satisfy constraint"),
    "text for a number": ({"ResourceConfig__InstanceCount": "1"}, "Member must be of type integer"),
    "unknown instance": ({"ResourceConfig__InstanceType": "ml.g4dn.huge"}, "Member must satisfy enum value set: ["),
    "argument of 257": (
        {"AlgorithmSpecification__ContainerArguments": ["a", "b" * 257]},
        "at 'algorithmSpecification.containerArguments.2.member'",
    ),
    "101 hyperparameters": ({"HyperParameters": {str(n): "" for n in range(101)}}, "less than or equal to 100"),
    "long hyperparameter": ({"HyperParameters": {"note": LONG}}, "at 'hyperParameters.note'"),
    "line break in a hyperparameter": ({"HyperParameters": {"note": "a\nb"}}, "at 'hyperParameters.note'"),
    "variable with a dash": ({"Environment": {"ARTCLF-JOB": "1"}}, "at 'environment.key'"),
    "tag with an emoji": ({"Tags": [{"Key": "study", "Value": "🎨"}]}, "at 'tags.1.member.value'"),
    "51 tags": ({"Tags": [{"Key": str(n), "Value": ""} for n in range(51)]}, "less than or equal to 50"),
    "tag of AWS": ({"Tags": [{"Key": "aws:study", "Value": ""}]}, "'aws:' is reserved"),
    "tag twice": ({"Tags": [{"Key": "study", "Value": ""}] * 2}, "unique"),
    "no image": ({"AlgorithmSpecification__TrainingImage": None}, "Exactly one of TrainingImage"),
    "no instance type": ({"ResourceConfig__InstanceType": None}, "InstanceType and an InstanceCount"),
    "key on local storage": ({"ResourceConfig__VolumeKmsKeyId": "1234abcd"}, "VolumeKmsKeyId cannot"),
    "no volume": (
        {"ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1}},
        "VolumeSizeInGB must be at least 1",
    ),
    "29 days": (
        {"StoppingCondition": {"MaxRuntimeInSeconds": 29 * 86400, "MaxWaitTimeInSeconds": 30 * 86400}},
        "28 days",
    ),
    "spot without wait": ({"StoppingCondition__MaxWaitTimeInSeconds": None}, "MaxWaitTimeInSeconds is required"),
    "wait without spot": ({"EnableManagedSpotTraining": False}, "requires EnableManagedSpotTraining"),
    "wait below runtime": ({"StoppingCondition__MaxWaitTimeInSeconds": 3599}, "greater than or equal"),
    "warm pool on spot": ({"ResourceConfig__KeepAlivePeriodInSeconds": 600}, "KeepAlivePeriodInSeconds cannot"),
}


@pytest.mark.parametrize(("changes", "said"), BROKEN.values(), ids=BROKEN)
def test_a_request_that_breaks_a_rule_is_refused_by_name_and_rule(
    start: Callable[..., FakeAws], changes: Mapping[str, Any], said: str
) -> None:
    aws = start()
    code, message = refused(client(aws).create_training_job, **request(**changes))
    assert code == "ValidationException" and said in message
    assert not played(aws).jobs


def test_all_broken_rules_of_the_model_are_told_at_once(start: Callable[..., FakeAws]) -> None:
    message = refused(client(start()).create_training_job, **request(RoleArn="me", TrainingJobName="-"))[1]
    assert message.startswith("2 validation errors detected: ") or message.startswith("3 validation errors detected: ")


def test_an_unknown_member_is_named() -> None:
    shape = service_model("sagemaker").shape_for("ResourceConfig")
    (broken,) = broken_rules(shape, {"Instances": 1}, "resourceConfig")
    assert broken == (
        "Value '1' at 'resourceConfig.instances' failed to satisfy constraint: Member is unknown to ResourceConfig"
    )


def test_letters_of_every_script_are_letters_in_a_tag(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws, Tags=[{"Key": "étude", "Value": "絵画 ٣"}])
    assert played(aws).job("artists-3f9a1c2b-a1").tags == {"étude": "絵画 ٣"}


def shapes_inside(shape: Shape | None, known: frozenset[str] = frozenset()) -> Iterator[Shape]:
    """Yields a shape and all that are inside it."""
    if shape is None or shape.name in known:
        return
    yield shape
    inner: list[Shape] = [
        *(shape.members.values() if isinstance(shape, StructureShape) else []),
        *([shape.member] if isinstance(shape, ListShape) else []),
        *([shape.key, shape.value] if isinstance(shape, MapShape) else []),
    ]
    for one in inner:
        yield from shapes_inside(one, known | {shape.name})


def test_every_pattern_of_the_operations_that_are_played_is_checked() -> None:
    unchecked = [
        (name, shape.name)
        for service in (FakeSageMaker, FakeLogs, FakeSts)
        for name in service_model(service.name).operation_names
        if hasattr(service, xform_name(name))
        for shape in shapes_inside(service_model(service.name).operation_model(name).input_shape)
        if "pattern" in shape.metadata and compiled_pattern(shape.metadata["pattern"]) is None
    ]
    assert unchecked == []


def test_two_hosts_are_allowed(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws, ResourceConfig__InstanceCount=2)
    assert describe(aws)["ResourceConfig"]["InstanceCount"] == 2


# -- names, quotas, rates, capacity --------------------------------------------------------------


def test_a_name_is_taken_for_ever_also_by_an_identical_request_and_an_ended_job(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws)
    for _ in ("alive", "ended"):
        code, message = refused(client(aws).create_training_job, **request())
        assert code == "ResourceInUse"
        assert "arn:aws:sagemaker:us-east-1:123456789012:training-job/artists-3f9a1c2b-a1" in message
        aws.clock.advance(10_000)
    assert len(played(aws).history) == 1


def test_only_a_deleted_job_frees_its_name(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws)
    assert refused(client(aws).delete_training_job, TrainingJobName="artists-3f9a1c2b-a1")[0] == "ResourceInUse"
    aws.clock.advance(10_000)
    client(aws).delete_training_job(TrainingJobName="artists-3f9a1c2b-a1")
    create(aws)
    assert refused(client(aws).delete_training_job, TrainingJobName="none")[0] == "ResourceNotFound"


def test_what_does_not_exist_is_a_validation_error(start: Callable[..., FakeAws]) -> None:
    sagemaker = client(start())
    for ask in (sagemaker.describe_training_job, sagemaker.stop_training_job):
        answer = refused(ask, TrainingJobName="none")
        assert answer == ("ValidationException", "Requested resource not found.")


def test_a_quota_counts_jobs_that_have_not_ended_and_spot_apart(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(), quotas={SPOT_QUOTA: 2}))
    create(aws, "a", "b")
    code, message = refused(client(aws).create_training_job, **request("c"))
    assert code == "ResourceLimitExceeded"
    assert f"'{SPOT_QUOTA}' is 2 Instances, with current utilization of 2 Instances and a request delta of 1" in message
    create(aws, "d", **ON_DEMAND)
    aws.clock.advance(10_000)
    create(aws, "c")
    assert played(aws).most_alive() == 3 and played(aws).most_alive(spot=True) == 2


def test_creates_are_throttled_by_fake_time(start: Callable[..., FakeAws]) -> None:
    aws = start(rates={"sagemaker.CreateTrainingJob": 1})
    create(aws, "a")
    assert refused(client(aws).create_training_job, **request("b")) == ("ThrottlingException", "Rate exceeded")
    aws.clock.advance(1)
    create(aws, "b")


def test_a_job_without_capacity_fails_with_the_words_of_the_service(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(), lacks_capacity=lambda job: job.name == "a"))
    create(aws, "a", "b")
    aws.clock.advance(10_000)
    job = describe(aws, "a")
    assert job["TrainingJobStatus"] == "Failed" and job["FailureReason"].startswith(
        "CapacityError: Unable to provision"
    )
    assert "TrainingStartTime" not in job and "BillableTimeInSeconds" not in job
    assert describe(aws, "b")["TrainingJobStatus"] == "Completed"


# -- life ----------------------------------------------------------------------------------------


def test_a_job_goes_through_its_phases_at_their_times_however_late_one_looks(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(seconds=100), durations=Durations(30, 40, 20, 10)))
    create(aws)
    seen = [describe(aws)["SecondaryStatus"]]
    for seconds in (30, 40, 20):
        aws.clock.advance(seconds)
        seen.append(describe(aws)["SecondaryStatus"])
    assert seen == ["Starting", "Pending", "Downloading", "Training"]
    assert describe(aws)["TrainingJobStatus"] == "InProgress"
    aws.clock.advance(1_000_000)
    job = describe(aws)
    assert words(aws) == ["Starting", "Pending", "Downloading", "Training", "Uploading", "Completed"]
    assert (job["TrainingEndTime"] - job["CreationTime"]).total_seconds() == 200
    assert (job["TrainingEndTime"] - job["TrainingStartTime"]).total_seconds() == 130
    assert job["LastModifiedTime"] == job["TrainingEndTime"]
    assert job["TrainingTimeInSeconds"] == 130 and job["BillableTimeInSeconds"] == 39


def test_a_description_holds_the_request_and_no_tags(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws)
    job, sent = describe(aws), request()
    assert "Tags" not in job
    assert {name: job[name] for name in sent if name != "Tags"} == {k: v for k, v in sent.items() if k != "Tags"}
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == (
        "s3://bucket/study/models/artists-3f9a1c2b-a1/output/model.tar.gz"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "AlgorithmError: , exit code: 3"), ("no such data set", "no such data set"), ("x" * 2000, "x" * 1024)],
)
def test_a_job_that_fails_says_why(start: Callable[..., FakeAws], text: str, reason: str) -> None:
    aws = start(FakeSageMaker(Scripted(exit_code=3, failure=text)))
    create(aws)
    aws.clock.advance(10_000)
    assert describe(aws)["TrainingJobStatus"] == "Failed" and describe(aws)["FailureReason"] == reason


def test_a_stopped_job_gets_its_time_to_save_and_no_more(start: Callable[..., FakeAws]) -> None:
    told: dict[str, str] = {}
    patience = {"quick": 50.0, "deaf": float("inf")}

    def workload(job: Job) -> Scripted:
        return Scripted(3000, stops_after_s=patience[job.name], on_end=lambda job, how: told.update({job.name: how}))

    aws = start(FakeSageMaker(workload))
    create(aws, *patience)
    aws.clock.advance(200)
    for name in patience:
        client(aws).stop_training_job(TrainingJobName=name)
        assert describe(aws, name)["TrainingJobStatus"] == "Stopping"
        refusal = refused(client(aws).stop_training_job, TrainingJobName=name)
        assert refusal[1] == "The request was rejected because the training job is in status Stopping."
    aws.clock.advance(10_000)
    spans = {}
    for name in patience:
        job = describe(aws, name)
        assert job["TrainingJobStatus"] == job["SecondaryStatus"] == "Stopped"
        stopping = next(t for t in job["SecondaryStatusTransitions"] if t["Status"] == "Stopping")
        spans[name] = (job["TrainingEndTime"] - stopping["StartTime"]).total_seconds()
    assert spans == {"quick": 50, "deaf": 120}
    assert told == {"quick": "terminated", "deaf": "killed"}


def test_a_job_that_has_ended_cannot_be_stopped(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws)
    aws.clock.advance(10_000)
    assert refused(client(aws).stop_training_job, TrainingJobName="artists-3f9a1c2b-a1") == (
        "ValidationException",
        "The request was rejected because the training job is in status Completed.",
    )


def test_a_job_that_was_stopped_before_it_ran_has_cost_nothing(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws)
    client(aws).stop_training_job(TrainingJobName="artists-3f9a1c2b-a1")
    assert words(aws) == ["Starting", "Stopping", "Stopped"]
    assert "BillableTimeInSeconds" not in describe(aws)


def test_an_interrupted_job_starts_again_and_its_waiting_is_not_billed(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(seconds=100), durations=Durations(30, 0, 20, 10)))
    create(aws)
    aws.clock.advance(60)
    played(aws).interrupt("artists-3f9a1c2b-a1", grace_s=5)
    aws.clock.advance(10_000)
    assert words(aws) == [
        *("Starting", "Downloading", "Training", "Interrupted"),
        *("Starting", "Downloading", "Training", "Uploading", "Completed"),
    ]
    job = describe(aws)
    assert job["TrainingTimeInSeconds"] == 30 + 130 and job["BillableTimeInSeconds"] == 48
    assert played(aws).job(job["TrainingJobName"]).interruptions == 1
    with pytest.raises(ValueError, match="has no spot machine to lose"):
        played(aws).interrupt("artists-3f9a1c2b-a1")


def test_max_runtime_counts_over_all_starts(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(seconds=3000), durations=Durations(30, 0, 20, 10)))
    create(aws)
    aws.clock.advance(30 + 2000)
    played(aws).interrupt("artists-3f9a1c2b-a1")
    aws.clock.advance(100_000)
    job = describe(aws)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert job["TrainingTimeInSeconds"] == 3600
    assert words(aws)[-2:] == ["Stopping", "MaxRuntimeExceeded"]


def test_max_wait_counts_waiting_and_running(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(seconds=3000), durations=Durations(starting=5000)))
    create(aws)
    aws.clock.advance(100_000)
    job = describe(aws)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxWaitTimeExceeded")
    assert (job["LastModifiedTime"] - job["CreationTime"]).total_seconds() == 7200


def test_only_spot_machines_are_lost(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws, **ON_DEMAND)
    aws.clock.advance(100)
    with pytest.raises(ValueError, match="on-demand"):
        played(aws).interrupt("artists-3f9a1c2b-a1")


def test_metrics_are_the_last_that_the_log_showed(start: Callable[..., FakeAws]) -> None:
    lines = ["epoch 1/2 val_accuracy 0.25", "epoch 2/2 val_accuracy 0.5", "done"]
    aws = start(FakeSageMaker(Scripted(lines=lines)))
    create(aws)
    aws.clock.advance(10_000)
    metrics = describe(aws)["FinalMetricDataList"]
    assert [(metric["MetricName"], metric["Value"]) for metric in metrics] == [("val_accuracy", 0.5)]


def test_a_warm_pool_is_reused_by_a_job_that_fits_and_expires(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(seconds=100)))
    pool = {**ON_DEMAND, "ResourceConfig__KeepAlivePeriodInSeconds": 600}
    create(aws, "a", **pool)
    assert describe(aws, "a")["WarmPoolStatus"]["Status"] == "InUse"
    aws.clock.advance(400)
    assert describe(aws, "a")["WarmPoolStatus"]["Status"] == "Available"
    create(aws, "b", **pool)
    assert describe(aws, "a")["WarmPoolStatus"] == {"Status": "Reused", "ReusedByJob": "b"}
    assert words(aws, "b") == ["Starting", "Downloading"]
    aws.clock.advance(10_000)
    assert describe(aws, "b")["WarmPoolStatus"]["Status"] == "Terminated"


def test_a_clock_that_steps_lets_a_client_that_looks_see_the_end(start: Callable[..., FakeAws]) -> None:
    aws = start(clock=SteppingClock(20))
    create(aws)
    looks = next(n for n in itertools.count(1) if describe(aws)["TrainingJobStatus"] == "Completed")
    assert looks == 8


# -- lists and tags ------------------------------------------------------------------------------


def listed(aws: FakeAws, **filters: Any) -> list[str]:
    pages = client(aws).get_paginator("list_training_jobs").paginate(**filters)
    return [summary["TrainingJobName"] for page in pages for summary in page["TrainingJobSummaries"]]


def test_a_list_is_read_page_by_page_also_while_jobs_are_added(start: Callable[..., FakeAws]) -> None:
    aws = start()
    names = [f"art-{number:02}" for number in range(25)]
    for name in names:
        create(aws, name)
        aws.clock.advance(1)
    assert listed(aws) == names
    newest = client(aws).list_training_jobs(SortOrder="Descending", MaxResults=10)
    create(aws, "late")
    rest = client(aws).list_training_jobs(SortOrder="Descending", MaxResults=100, NextToken=newest["NextToken"])
    seen = [summary["TrainingJobName"] for page in (newest, rest) for summary in page["TrainingJobSummaries"]]
    assert seen == names[::-1] and "NextToken" not in rest


def test_a_summary_holds_what_real_ones_hold(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws)
    aws.clock.advance(10_000)
    (summary,) = client(aws).list_training_jobs()["TrainingJobSummaries"]
    assert set(summary) == {
        *("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime"),
        *("TrainingJobStatus", "SecondaryStatus"),
    }


def test_a_list_is_filtered_by_name_status_and_times(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(seconds=100)))
    create(aws, "Artists-1", "types-1")
    aws.clock.advance(1000)
    noon = aws.clock.utc()
    aws.clock.advance(10)
    create(aws, "artists-2")
    assert listed(aws, NameContains="ARTISTS") == ["Artists-1", "artists-2"]
    assert listed(aws, StatusEquals="InProgress") == ["artists-2"]
    assert listed(aws, CreationTimeAfter=noon) == ["artists-2"]
    assert listed(aws, CreationTimeBefore=noon, SortBy="Name", SortOrder="Descending") == ["types-1", "Artists-1"]
    assert listed(aws, LastModifiedTimeAfter=noon) == ["artists-2"]
    assert listed(aws, LastModifiedTimeBefore=noon, NameContains="1") == ["Artists-1", "types-1"]
    assert refused(client(aws).list_training_jobs, MaxResults=101)[0] == "ValidationException"


def test_a_status_beside_a_page_size_thins_pages_out_after_they_were_cut(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(seconds=100)))
    create(aws, "a", "b")
    aws.clock.advance(1000)
    create(aws, "c")
    page = client(aws).list_training_jobs(MaxResults=2, StatusEquals="InProgress")
    assert page["TrainingJobSummaries"] == [] and page["NextToken"]
    assert listed(aws, MaxResults=2, StatusEquals="InProgress") == ["c"]


def test_a_token_belongs_to_its_filters(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws, "a", "b")
    token = client(aws).list_training_jobs(MaxResults=1)["NextToken"]
    for wrong in ({"NextToken": token, "NameContains": "b"}, {"NextToken": "mine"}):
        assert refused(client(aws).list_training_jobs, **wrong)[0] == "ValidationException"


def test_a_list_may_lag_behind_where_the_test_wants_it(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(), list_lag_s=5))
    create(aws, "a")
    assert listed(aws) == [] and describe(aws, "a")["TrainingJobName"] == "a"
    aws.clock.advance(5)
    assert listed(aws) == ["a"]


def test_tags_can_be_listed_added_and_taken(start: Callable[..., FakeAws]) -> None:
    aws = start()
    create(aws)
    sagemaker, arn = client(aws), describe(aws)["TrainingJobArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "owner", "Value": "me"}])
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["artclf:study"])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "owner", "Value": "me"}]
    many = [{"Key": str(number), "Value": ""} for number in range(50)]
    assert "at most 50" in refused(sagemaker.add_tags, ResourceArn=arn, Tags=many)[1]


# -- logs ----------------------------------------------------------------------------------------


def test_a_log_does_not_exist_before_its_first_line(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(lines=["hello"])))
    logs = client(aws, "logs")
    create(aws)
    assert refused(logs.describe_log_streams, logGroupName=LOG_GROUP)[0] == "ResourceNotFoundException"
    aws.clock.advance(100)
    describe(aws)
    (stream,) = logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix="artists-")["logStreams"]
    began = int(played(aws).history[0].transitions[-1].start)
    assert stream["logStreamName"] == f"artists-3f9a1c2b-a1/algo-1-{began}"
    missing = {"logGroupName": LOG_GROUP, "logStreamName": "none"}
    assert refused(logs.get_log_events, **missing)[0] == "ResourceNotFoundException"


def test_every_start_has_a_stream_of_its_own(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(lines=["hello"])))
    create(aws)
    aws.clock.advance(100)
    played(aws).interrupt("artists-3f9a1c2b-a1")
    aws.clock.advance(10_000)
    describe(aws)
    logs = client(aws, "logs")
    first = logs.describe_log_streams(logGroupName=LOG_GROUP, limit=1)
    second = logs.describe_log_streams(logGroupName=LOG_GROUP, limit=1, nextToken=first["nextToken"])
    assert "nextToken" not in second
    events = logs.filter_log_events(logGroupName=LOG_GROUP, logStreamNamePrefix="artists-3f9a1c2b-a1/")["events"]
    assert [event["message"] for event in events] == ["hello", "hello"]
    assert events[0]["logStreamName"] != events[1]["logStreamName"]


def test_a_log_read_forward_ends_with_the_token_that_was_passed_in(start: Callable[..., FakeAws]) -> None:
    lines = [f"line {number}" for number in range(25)]
    aws = start(FakeSageMaker(Scripted(lines=lines)), FakeLogs(page_events=10))
    create(aws)
    aws.clock.advance(100)
    describe(aws)
    logs = client(aws, "logs")
    stream = logs.describe_log_streams(logGroupName=LOG_GROUP)["logStreams"][0]["logStreamName"]
    place = {"logGroupName": LOG_GROUP, "logStreamName": stream}
    read: list[str] = []
    token = ""
    while True:
        asked = {**place, "startFromHead": True, **({"nextToken": token} if token else {})}
        page = logs.get_log_events(**asked)
        read += [event["message"] for event in page["events"]]
        if page["nextForwardToken"] == token:
            break
        token = page["nextForwardToken"]
    assert read == lines
    tail = logs.get_log_events(**place, limit=2)
    assert [event["message"] for event in tail["events"]] == lines[-2:]
    before = logs.get_log_events(**place, limit=2, nextToken=tail["nextBackwardToken"])
    assert [event["message"] for event in before["events"]] == lines[-4:-2]
    assert refused(logs.get_log_events, **place, nextToken=token)[0] == "InvalidParameterException"


def test_lines_are_found_by_a_word(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(Scripted(lines=["epoch 1", "warning: slow", "epoch 2"])), FakeLogs(page_events=1))
    create(aws)
    aws.clock.advance(100)
    describe(aws)
    pages = (
        client(aws, "logs").get_paginator("filter_log_events").paginate(logGroupName=LOG_GROUP, filterPattern="epoch")
    )
    assert [event["message"] for page in pages for event in page["events"]] == ["epoch 1", "epoch 2"]


# -- real processes ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """Returns the address of an S3 server with a bucket."""
    with moto_server.serve() as url:
        yield url


@pytest.fixture
def s3(s3_url: str) -> Any:
    s3 = session().client("s3", endpoint_url=s3_url, region_name="us-east-1")
    s3.create_bucket(Bucket="bucket")
    return s3


def command(code: str) -> list[str]:
    """Returns a child that is quick to start: Python without site-packages."""
    return [sys.executable, "-I", "-S", "-c", code]


def has_ended(aws: FakeAws, name: str = "artists-3f9a1c2b-a1") -> Callable[[], bool]:
    return lambda: played(aws).jobs[name].ended is not None


READS_ITS_FOLDERS = """
import json, os, pathlib, sys
base = pathlib.Path(os.environ["ARTCLF_SAGEMAKER_BASE"])
config = {path.stem: json.loads(path.read_text()) for path in (base / "input/config").iterdir()}
data = {str(path.relative_to(base)): path.read_text() for path in (base / "input/data").rglob("*") if path.is_file()}
print(json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ), "config": config, "data": data}))
print("val_accuracy 0.75", file=sys.stderr)
(base / "model" / "model.keras").write_text("weights")
"""


def test_a_job_really_runs_as_a_child_in_the_folders_of_the_platform(
    start: Callable[..., FakeAws], s3: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_SECRET", "must not reach a job")
    s3.put_object(Bucket="bucket", Key="sets/tiny/shards/0.bin", Body=b"shard")
    workload = EntryPoint({"AWS_ENDPOINT_URL_S3": s3_url}, command(READS_ITS_FOLDERS))
    aws = start(FakeSageMaker(workload, durations=Durations.none()), clock=ScaledClock())
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/sets/tiny"}
    channel = {"ChannelName": "dataset", "DataSource": {"S3DataSource": source}}
    changes = {"AlgorithmSpecification__ContainerArguments": None, "HyperParameters": {"train.epochs": "1"}}
    create(aws, InputDataConfig=[channel], **changes)
    aws.wait_for(has_ended(aws))
    job = describe(aws)
    assert job["TrainingJobStatus"] == "Completed", job
    assert job["FinalMetricDataList"][0]["Value"] == 0.75
    logs = aws.services["logs"]
    assert isinstance(logs, FakeLogs)
    saw = json.loads(next(line for line in logs.lines(LOG_GROUP) if line.startswith("{")))
    assert saw["arguments"] == ["train"]
    assert saw["config"]["hyperparameters"] == {"train.epochs": "1"}
    assert saw["config"]["inputdataconfig"]["dataset"]["TrainingInputMode"] == "File"
    assert saw["config"]["resourceconfig"]["hosts"] == ["algo-1"]
    assert saw["data"] == {"input/data/dataset/shards/0.bin": "shard"}
    environment = saw["environment"]
    assert environment["TRAINING_JOB_NAME"] == environment["ARTCLF_JOB"] == "artists-3f9a1c2b-a1"
    assert environment["TRAINING_JOB_ARN"] == job["TrainingJobArn"] and environment["AWS_REGION"] == "us-east-1"
    assert "PLANTED_SECRET" not in environment
    assert not Path(environment["ARTCLF_SAGEMAKER_BASE"]).parent.exists()
    packed = s3.get_object(Bucket="bucket", Key="study/models/artists-3f9a1c2b-a1/output/model.tar.gz")
    assert packed["ContentLength"] > 0


def test_a_channel_without_objects_fails_the_job_before_it_runs(
    start: Callable[..., FakeAws], s3: Any, s3_url: str
) -> None:
    workload = EntryPoint({"AWS_ENDPOINT_URL_S3": s3_url}, command("print('ran')"))
    aws = start(FakeSageMaker(workload, durations=Durations.none()), clock=ScaledClock())
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/none"}
    create(aws, InputDataConfig=[{"ChannelName": "dataset", "DataSource": {"S3DataSource": source}}])
    aws.wait_for(has_ended(aws))
    assert "No S3 objects found under S3 URL 's3://bucket/none'" in describe(aws)["FailureReason"]
    assert played(aws).jobs["artists-3f9a1c2b-a1"].lines == []


FAILS = """
import os, pathlib, sys
(pathlib.Path(os.environ["ARTCLF_SAGEMAKER_BASE"]) / "output/failure").write_text("no such data set")
sys.exit(2)
"""


def test_the_failure_file_of_a_child_becomes_the_reason(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(EntryPoint({}, command(FAILS)), durations=Durations.none()), clock=ScaledClock())
    create(aws)
    aws.wait_for(has_ended(aws))
    assert describe(aws)["FailureReason"] == "no such data set"


WAITS = """
import os, signal, subprocess, sys, time
def stop(number, frame):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
sleeper = [sys.executable, "-I", "-S", "-c", "import time; print('child', flush=True); time.sleep(600)"]
child = subprocess.Popen(sleeper, start_new_session=True)
print("pids", os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def pids(job: Job) -> list[int]:
    return [int(word) for line in job.lines if line.startswith("pids") for word in line.split()[1:]]


def is_gone(process: int) -> bool:
    """Waits until a process that was killed is no more, for a minute at most, and says whether that came true."""
    with contextlib.suppress(psutil.NoSuchProcess):
        dead = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        deadline = time.monotonic() + 60
        while psutil.Process(process).status() not in dead:
            if time.monotonic() > deadline:
                return False
    return True


def test_a_stopped_child_hears_sigterm_and_leaves_nobody_behind(start: Callable[..., FakeAws]) -> None:
    aws = start(FakeSageMaker(EntryPoint({}, command(WAITS)), durations=Durations.none()), clock=ScaledClock())
    create(aws)
    job = played(aws).jobs["artists-3f9a1c2b-a1"]
    aws.wait_for(lambda: bool(pids(job)))
    client(aws).stop_training_job(TrainingJobName=job.name)
    aws.wait_for(has_ended(aws))
    assert job.status == "Stopped" and "saved" in job.lines
    assert all(is_gone(process) for process in pids(job))


@pytest.mark.parametrize(("grace_s", "is_warned"), [(0, False), (1e6, True)])
def test_a_lost_spot_machine_takes_its_processes_along_and_a_fresh_one_starts(
    start: Callable[..., FakeAws], grace_s: float, is_warned: bool
) -> None:
    seen: list[int] = []

    def strikes(job: Job) -> bool:
        seen.extend(pids(job) if job.interruptions == 0 else [])
        return job.interruptions == 0 and bool(pids(job))

    sagemaker = FakeSageMaker(
        EntryPoint({}, command(WAITS)),
        durations=Durations.none(),
        interrupt_when=strikes,
        reclaim_grace_s=grace_s,
    )
    aws = start(sagemaker, clock=ScaledClock())
    create(aws)
    job = sagemaker.jobs["artists-3f9a1c2b-a1"]
    aws.wait_for(lambda: job.interruptions == 1 and bool(pids(job)))
    assert job.starts == 2 and not set(seen) & set(pids(job))
    assert seen and all(is_gone(process) for process in seen)
    logs = aws.services["logs"]
    assert isinstance(logs, FakeLogs)
    assert ("saved" in logs.lines(LOG_GROUP)) == is_warned
    os.kill(pids(job)[0], signal.SIGKILL)
    aws.wait_for(has_ended(aws))
    assert job.failure_reason == "AlgorithmError: , exit code: 137"


def test_the_image_is_run_with_the_folders_mounted_and_no_value_on_the_command_line(
    start: Callable[..., FakeAws], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\n[ "$1" = run ] && echo "$@" && echo "secret: $AWS_SECRET_ACCESS_KEY"\nexit 0\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    workload = Image({"AWS_SECRET_ACCESS_KEY": "hidden"}, options=["--memory", "1g"])
    aws = start(FakeSageMaker(workload, durations=Durations.none()), clock=ScaledClock())
    create(aws)
    aws.wait_for(has_ended(aws))
    said, secret = played(aws).jobs["artists-3f9a1c2b-a1"].lines
    assert said.startswith("run --rm --name fake-sagemaker-") and "--network host" in said and ":/opt/ml" in said
    assert said.endswith(
        f"--memory 1g {request()['AlgorithmSpecification']['TrainingImage']} --run-uri s3://bucket/study/runs/3f9a1c2b"
    )
    assert "hidden" not in said and secret == "secret: hidden"


def test_every_answer_shape_and_protocol_is_the_one_that_botocore_speaks() -> None:
    botocore_session = botocore.session.get_session()
    spoken = {name: botocore_session.get_service_model(name).resolved_protocol for name in ("sagemaker", "logs", "sts")}
    assert spoken == {"sagemaker": "json", "logs": "json", "sts": "query"}
    assert broken_rules(service_model("sagemaker").shape_for("TrainingJobName"), "ok") == []


def test_time_stands_still_until_it_is_moved() -> None:
    clock = Clock()
    before = clock.utc()
    clock.advance(90)
    assert (clock.utc() - before).total_seconds() == 90
