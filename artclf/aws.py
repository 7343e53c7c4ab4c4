"""What every caller of AWS shares: a session with this machine's credentials, and what errors say.

boto3 is imported when a session is made.
"""

from __future__ import annotations

import logging
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
            session = boto3.session.Session(region_name="us-east-1")
    except botocore.exceptions.BotoCoreError as error:
        raise ConfigError(f"the AWS settings of this machine cannot be used: {reason(error)}.") from error
    return session


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


def reason(error: Exception) -> str:
    """Returns what went wrong in one line without secrets."""
    told = response(error).get("Error", {})
    text = f"{told['Code']}: {told.get('Message', '')}" if told.get("Code") else str(error)
    return printable(" ".join(text.split())).rstrip(".: ")[:300]


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
