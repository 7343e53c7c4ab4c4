"""What errors of AWS say, and what they never say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, EndpointConnectionError, HTTPClientError

from artclf import aws
from tests.conftest import PROJECT

SECRET = "FwoGZXIvYXdzEXAMPLE/of+a/token=="


@pytest.mark.parametrize(
    "error",
    [
        HTTPClientError(error=f"Invalid header value b'{SECRET}\\n'"),
        CredentialRetrievalError(provider="custom-process", error_msg=f"wrote {SECRET} to stderr"),
        EndpointConnectionError(endpoint_url=f"https://user:{SECRET.replace('/', '')}@example.org/"),
        ClientError({"Error": {"Code": "SignatureDoesNotMatch", "Message": f"No.\n\ntoken:{SECRET}"}}, "x"),
        ClientError({"Error": {"Code": "X", "Message": f"The token {SECRET} is unknown"}}, "x"),
    ],
    ids=["a header", "a program", "a URL", "a quoted request", "an echo"],
)
def test_no_secret_is_in_what_is_said_of_an_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    for said in (aws.message(error), aws.reason(error)):
        assert said and SECRET not in said and SECRET.replace("/", "") not in said and "stderr" not in said


def test_a_token_with_a_line_break_is_told_at_once_and_not_tried_again() -> None:
    error = HTTPClientError(error=f"Invalid header value b'{SECRET}\\n'")
    assert not aws.is_passing(error) and aws.is_about_credentials(error)
    assert "a line break in a credential?" in aws.reason(error)


@pytest.mark.parametrize(
    "environment",
    [
        {"AWS_ENDPOINT_URL_S3": "junk"},
        {"AWS_DEFAULT_REGION": "no region!", "AWS_REGION": "no region!"},
        {"AWS_DEFAULTS_MODE": "junk"},
        {"AWS_REQUEST_CHECKSUM_CALCULATION": "junk"},
        {"AWS_STS_REGIONAL_ENDPOINTS": "junk"},
        {"AWS_ACCOUNT_ID_ENDPOINT_MODE": "junk"},
        {"config": "[default]\ns3 = junk\n"},
        {"config": "[default]\ncredential_process = echo junk\n", "AWS_ACCESS_KEY_ID": ""},
        {"config": "[default]\ncredential_process = no-such-program\n", "AWS_ACCESS_KEY_ID": ""},
        {"config": "[default]\nregion = \x00\n"},
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://192.0.2.1/", "AWS_ACCESS_KEY_ID": ""},
        {"AWS_PROFILE": "nobody"},
    ],
    ids=lambda environment: " ".join(environment) + environment.get("config", "")[10:35].replace("\n", ""),
)
def test_odd_settings_of_this_machine_are_told_in_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
    (tmp_path / "config").write_text(environment.get("config", ""))
    files = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    odd = {name: value for name, value in environment.items() if name != "config"}
    env = {name: value for name, value in {**kept, **keys, **files, **odd}.items() if value}
    program = (
        "from artclf.command_line import run_command; from artclf.s3 import S3Storage\n"
        "run_command(lambda arguments: S3Storage('s3://bucket/x', budget_s=0).write('a', b'') or 0)"
    )
    here = {**env, "AWS_ENDPOINT_URL_S3": env.get("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")}
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, env=here, capture_output=True, text=True, check=False
    )
    assert answer.returncode in (2, 5) and answer.stderr.startswith("error: "), answer.stderr
    assert answer.stderr.count("\n") == 1
