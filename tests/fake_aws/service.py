"""What a service is to the server: its name in botocore, one method an operation, and time that passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from botocore import xform_name
from botocore.model import OperationModel, ServiceModel

from tests.fake_aws.model import Params, broken_rules, service_model
from tests.fake_aws.protocols import WIRES, ServiceError, Wire

if TYPE_CHECKING:
    from tests.fake_aws.server import FakeAws


class Service:
    """One service. Its operations are methods ``describe_training_job(params, now) -> result``, named as in boto3.

    They get parameters that keep every rule of the model, and run one at a time; ``now`` is in seconds since 1970.
    """

    name: ClassVar[str]
    invalid: ClassVar[str] = "ValidationException"
    """The code for parameters that break a rule."""
    throttled: ClassVar[ServiceError] = ServiceError("ThrottlingException", "Rate exceeded")
    background: bool = False
    """Whether time must also pass between requests (``tick``), since processes live in it."""
    aws: FakeAws

    def attach(self, aws: FakeAws) -> None:
        """Takes its place in an account, before the first request."""
        self.aws = aws

    def settle(self, now: float) -> None:
        """Does all that was due until now."""

    def tick(self) -> None:
        """Called several times a second, from a thread of its own, where ``background`` is set."""

    def close(self) -> None:
        """Ends what still runs."""

    @property
    def model(self) -> ServiceModel:
        """AWS's own model of the service."""
        return service_model(self.name)

    @property
    def wire(self) -> Wire:
        """The protocol that botocore speaks with it."""
        return WIRES[self.model.resolved_protocol]

    def operation(self, name: str) -> tuple[OperationModel, Callable[[Params, float], Params]]:
        """Returns an operation's model and method. Raises ServiceError if AWS or this stand-in has none."""
        if name not in self.model.operation_names:
            raise ServiceError("UnknownOperationException", f"{self.name} has no operation {name!r}")
        method = getattr(self, xform_name(name), None)
        if method is None:
            known = ", ".join(o for o in self.model.operation_names if hasattr(self, xform_name(o)))
            message = f"tests/fake_aws plays no {self.name}.{name}, of this service only {known}"
            raise ServiceError("UnknownOperationException", message)
        return self.model.operation_model(name), method

    def check(self, operation: OperationModel, params: Params) -> None:
        """Raises ServiceError, in AWS's words, for parameters that break the model's rules."""
        if operation.input_shape is None:
            broken = [f"{name} is unknown to {operation.name}" for name in params]
        else:
            broken = broken_rules(operation.input_shape, params)
        if broken:
            errors = "error" if len(broken) == 1 else "errors"
            raise ServiceError(self.invalid, f"{len(broken)} validation {errors} detected: {'; '.join(broken)}")

    def refuse(self, message: str) -> ServiceError:
        """Returns the error for parameters that the model allows and the service does not."""
        return ServiceError(self.invalid, message)
