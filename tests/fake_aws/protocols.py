"""How requests and answers look on the wire: JSON 1.1 (SageMaker, CloudWatch Logs) and Query (STS).

These are what botocore 1.44 picks for the services here. EC2 (``ec2``, a form as Query's) and Batch (``rest-json``,
whose operations are told by method and path) add a class each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from botocore.model import ListShape, OperationModel, ServiceModel, Shape, StructureShape

from tests.fake_aws.model import Params


class ServiceError(Exception):
    """What a service answers instead of a result: its code, its message, and the HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


@dataclass(frozen=True)
class HttpRequest:
    """A request as it came in; header names are in lower case, the path has its query."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class HttpAnswer:
    """An answer as it goes out."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Wire(Protocol):
    """A protocol of AWS."""

    refusals: Mapping[str, ServiceError]
    """What is said to one who may not ask: ``missing unknown expired region``."""

    def operation(self, request: HttpRequest) -> str:
        """Returns the name of the operation that is asked for."""

    def params(self, request: HttpRequest, operation: OperationModel) -> Params:
        """Returns what was sent with it. Raises ServiceError if it cannot be read."""

    def answer(self, operation: OperationModel, result: Params) -> HttpAnswer:
        """Returns a result as it is sent."""

    def error(self, error: ServiceError, service: ServiceModel | None) -> HttpAnswer:
        """Returns an error as it is sent."""


class Json:
    """JSON 1.1: the operation is in a header, timestamps are seconds since 1970."""

    refusals: Mapping[str, ServiceError] = {
        "missing": ServiceError("MissingAuthenticationTokenException", "Missing Authentication Token"),
        "unknown": ServiceError(
            "UnrecognizedClientException", "The security token included in the request is invalid."
        ),
        "expired": ServiceError("ExpiredTokenException", "The security token included in the request is expired"),
        "region": ServiceError("InvalidSignatureException", "Credential should be scoped to a valid region."),
    }

    def operation(self, request: HttpRequest) -> str:
        """Returns the name of the operation that is asked for."""
        return request.headers.get("x-amz-target", "").rpartition(".")[2]

    def params(self, request: HttpRequest, operation: OperationModel) -> Params:
        """Returns the object in the body. Raises ServiceError if it holds none."""
        try:
            params = json.loads(request.body or b"{}")
        except ValueError as error:
            raise ServiceError("SerializationException", f"the body is not JSON: {error}") from error
        if not isinstance(params, dict):
            raise ServiceError("SerializationException", "the body is not an object")
        return params

    def answer(self, operation: OperationModel, result: Params) -> HttpAnswer:
        """Returns a result as it is sent."""
        return self._sent(200, result)

    def error(self, error: ServiceError, service: ServiceModel | None) -> HttpAnswer:
        """Returns an error as it is sent; SageMaker's own errors spell their only member ``Message``."""
        own = error.code in service.shape_names if service is not None else False
        message = "Message" if own and service is not None and "Message" in _members(service, error.code) else "message"
        return self._sent(error.status, {"__type": error.code, message: error.message})

    def _sent(self, status: int, content: Params) -> HttpAnswer:
        return HttpAnswer(status, "application/x-amz-json-1.1", json.dumps(content, allow_nan=False).encode())


class Query:
    """Query: a form goes in, XML comes out. Reads flat parameters only, which is all that STS is asked with."""

    refusals: Mapping[str, ServiceError] = {
        "missing": ServiceError("MissingAuthenticationToken", "Request is missing Authentication Token", 403),
        "unknown": ServiceError("InvalidClientTokenId", "The security token included in the request is invalid.", 403),
        "expired": ServiceError("ExpiredToken", "The security token included in the request is expired", 403),
        "region": ServiceError("SignatureDoesNotMatch", "Credential should be scoped to a valid region.", 403),
    }

    def operation(self, request: HttpRequest) -> str:
        """Returns the name of the operation that is asked for."""
        return dict(parse_qsl(request.body.decode())).get("Action", "")

    def params(self, request: HttpRequest, operation: OperationModel) -> Params:
        """Returns the fields of the form."""
        sent = dict(parse_qsl(request.body.decode(), keep_blank_values=True))
        members = operation.input_shape.members if operation.input_shape is not None else {}
        return {
            name: int(value) if name in members and members[name].type_name == "integer" else value
            for name, value in sent.items()
            if name not in ("Action", "Version")
        }

    def answer(self, operation: OperationModel, result: Params) -> HttpAnswer:
        """Returns a result as it is sent."""
        shape = operation.output_shape
        inside = f"<{shape.metadata.get('resultWrapper', f'{operation.name}Result')}>" if shape is not None else ""
        content = f"{inside}{_xml(shape, result)}{inside.replace('<', '</')}" if shape is not None else ""
        namespace = operation.service_model.metadata["xmlNamespace"]
        return self._sent(200, f'<{operation.name}Response xmlns="{namespace}">{content}</{operation.name}Response>')

    def error(self, error: ServiceError, service: ServiceModel | None) -> HttpAnswer:
        """Returns an error as it is sent."""
        content = f"<Type>Sender</Type><Code>{error.code}</Code><Message>{escape(error.message)}</Message>"
        return self._sent(error.status, f"<ErrorResponse><Error>{content}</Error></ErrorResponse>")

    def _sent(self, status: int, content: str) -> HttpAnswer:
        return HttpAnswer(status, "text/xml", content.encode())


WIRES: dict[str, Wire] = {"json": Json(), "query": Query()}


def _members(service: ServiceModel, name: str) -> Mapping[str, Shape]:
    shape = service.shape_for(name)
    return shape.members if isinstance(shape, StructureShape) else {}


def _xml(shape: Shape, value: Any) -> str:
    if isinstance(shape, StructureShape):
        return "".join(f"<{name}>{_xml(shape.members[name], inner)}</{name}>" for name, inner in value.items())
    if isinstance(shape, ListShape):
        return "".join(f"<member>{_xml(shape.member, inner)}</member>" for inner in value)
    if shape.type_name == "timestamp":
        return datetime.fromtimestamp(value, UTC).isoformat()
    return escape(str(value).lower() if isinstance(value, bool) else str(value))
