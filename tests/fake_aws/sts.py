"""STS: who am I."""

from __future__ import annotations

from tests.fake_aws.model import Params
from tests.fake_aws.service import Service


class FakeSts(Service):
    """STS, of which only GetCallerIdentity is played."""

    name = "sts"

    def get_caller_identity(self, params: Params, now: float) -> Params:
        """Returns the account, and a user that stands for every known key."""
        arn = f"arn:aws:iam::{self.aws.account}:user/testing"
        return {"UserId": "AIDATESTINGTESTING", "Account": self.aws.account, "Arn": arn}
