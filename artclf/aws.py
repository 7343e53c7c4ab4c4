"""What every caller of AWS shares: a session with this machine's credentials, and what errors say.

boto3 is imported when a session is made.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from artclf.errors import ConfigError, printable


def aws_session() -> Any:
    """Returns a new boto3 session with whatever credentials this machine has now.

    Raises:
        ConfigError: if it has none, or its settings cannot be used.
    """
    import boto3
    import botocore.exceptions

    for name in ("auth", "endpoint", "parsers"):  # at DEBUG they print requests and answers, session tokens in them
        logging.getLogger(f"botocore.{name}").setLevel(logging.INFO)
    try:
        session = boto3.session.Session()
        if session.get_credentials() is None:
            raise ConfigError(
                "no AWS credentials found. Log in (aws sso login), or set AWS_PROFILE or AWS_ACCESS_KEY_ID."
            )
        if not session.region_name:  # S3 finds the bucket's region by itself
            session = boto3.session.Session(region_name=named_region() or "us-east-1")
    except botocore.exceptions.BotoCoreError as error:
        raise ConfigError(f"the AWS settings of this machine cannot be used: {reason(error)}.") from error
    return session


def named_region() -> str | None:
    """Returns the region that this machine's settings name, if they name one."""
    import boto3

    # SageMaker's containers and AWS's other tools have AWS_REGION, which boto3 does not look at.
    return boto3.session.Session().region_name or os.environ.get("AWS_REGION") or None


def response(error: Exception) -> dict[str, Any]:
    """Returns the answer that refused a call, empty if there was none."""
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, dict) else {}


def code(error: Exception) -> str:
    """Returns the service's word for a refusal, empty if there was no answer."""
    return str(response(error).get("Error", {}).get("Code", ""))


def status(error: Exception) -> int:
    """Returns the HTTP status of a refusal, 0 if there was no answer."""
    return int(response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def message(error: Exception) -> str:
    """Returns what went wrong in one line. What follows the first may quote our request, with its session token."""
    told = response(error).get("Error", {})
    lines = str(told.get("Message") or error).strip().splitlines()
    return printable(" ".join(lines[0].split()))[:400] if lines else type(error).__name__


def reason(error: Exception) -> str:
    """Returns the service's word for what went wrong, and its message without a full stop, in one line."""
    told = response(error).get("Error", {})
    word = f"{told['Code']}: " if told.get("Code") else ""
    return f"{word}{message(error) if told.get('Message') or not word else ''}".rstrip(".: ")


def lacks_credentials(error: Exception) -> bool:
    """Says whether a call was not made since this machine has no credentials, or they cannot be renewed."""
    from botocore import exceptions as of

    missing = (of.NoCredentialsError, of.PartialCredentialsError, of.CredentialRetrievalError)
    expired = (of.TokenRetrievalError, of.SSOError, of.LoginError)
    return isinstance(error, (*missing, *expired))


def is_unanswered(error: Exception) -> bool:
    """Says whether no answer came, or not the whole of it: the call may have been carried out."""
    from botocore.exceptions import ConnectionError as NotReached
    from botocore.exceptions import HTTPClientError

    return isinstance(error, HTTPClientError | NotReached | ConnectionError)
