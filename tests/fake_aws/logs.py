"""CloudWatch Logs: groups of streams of lines, read page by page."""

from __future__ import annotations

import bisect
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.fake_aws.model import Params
from tests.fake_aws.protocols import ServiceError
from tests.fake_aws.service import Service

PAGE_EVENTS = 10_000
PAGE_BYTES = 1 << 20
"""Most of a page of events (GetLogEvents: "up to 1 MB of log events or up to 10,000 log events")."""
STREAMS = 50
"""Most streams of a page (DescribeLogStreams, limit)."""


@dataclass(frozen=True)
class Event:
    """One line, with its fake time in milliseconds since 1970."""

    timestamp: int
    message: str

    def shown(self, **more: Any) -> Params:
        """Returns the event as the API shows it."""
        return {"timestamp": self.timestamp, "message": self.message, "ingestionTime": self.timestamp, **more}


class FakeLogs(Service):
    """CloudWatch Logs, to be written by other services and read by clients.

    Attributes:
        page_events: most events of a page; fewer make a small log many pages.
    """

    name = "logs"
    invalid = "InvalidParameterException"

    def __init__(self, page_events: int = PAGE_EVENTS) -> None:
        self.page_events = page_events
        self.groups: dict[str, dict[str, list[Event]]] = {}

    def put(self, group: str, stream: str, now: float, line: str) -> None:
        """Adds a line; an empty one is none (a message has at least one character)."""
        if line:
            self.groups.setdefault(group, {}).setdefault(stream, []).append(Event(round(now * 1000), line))

    def lines(self, group: str, prefix: str = "") -> list[str]:
        """Returns all lines of the streams with a prefix, for tests to look at."""
        streams = self.groups.get(group, {})
        return [event.message for name in sorted(streams) if name.startswith(prefix) for event in streams[name]]

    def describe_log_streams(self, params: Params, now: float) -> Params:
        """Returns a page of streams, by name or by their last line."""
        streams = self._group(params)
        prefix, order = params.get("logStreamNamePrefix", ""), params.get("orderBy", "LogStreamName")
        if prefix and order == "LastEventTime":
            raise self.refuse("Cannot order by LastEventTime with a logStreamNamePrefix.")
        names = sorted(name for name in streams if name.startswith(prefix))
        if order == "LastEventTime":
            names.sort(key=lambda name: streams[name][-1].timestamp)
        if params.get("descending"):
            names.reverse()
        begin = self._place(params.get("nextToken", "0"))
        page = names[begin : begin + params.get("limit", STREAMS)]
        answer: Params = {"logStreams": [self._stream(params, name, streams[name]) for name in page]}
        if begin + len(page) < len(names):
            answer["nextToken"] = str(begin + len(page))
        return answer

    def _stream(self, params: Params, name: str, events: Sequence[Event]) -> Params:
        place = f"{self.aws.region}:{self.aws.account}"
        return {
            "logStreamName": name,
            "creationTime": events[0].timestamp,
            "firstEventTimestamp": events[0].timestamp,
            "lastEventTimestamp": events[-1].timestamp,
            "lastIngestionTime": events[-1].timestamp,
            "uploadSequenceToken": "0",
            "arn": f"arn:aws:logs:{place}:log-group:{params['logGroupName']}:log-stream:{name}",
            "storedBytes": 0,
        }

    def get_log_events(self, params: Params, now: float) -> Params:
        """Returns a page of a stream. At an end of it, the token that was passed in comes back."""
        streams = self._group(params)
        if params["logStreamName"] not in streams:
            raise ServiceError("ResourceNotFoundException", "The specified log stream does not exist.")
        events = self._between(streams[params["logStreamName"]], params)
        most = min(params.get("limit", self.page_events), self.page_events)
        token, from_head = params.get("nextToken", ""), params.get("startFromHead", False)
        direction, _, place = token.partition("/") if token else ("f" if from_head else "b", "", "")
        if direction == "f":
            if token and not from_head:
                raise self.refuse("A nextForwardToken must come with startFromHead set to true.")
            begin = self._place(place or "0")
            end = begin + _fitting(events[begin : begin + most])
        elif direction == "b":
            end = self._place(place or str(len(events)))
            begin = end - _fitting(events[max(0, end - most) : end][::-1])
        else:
            raise self.refuse("The specified nextToken is invalid.")
        return {
            "events": [event.shown() for event in events[begin:end]],
            "nextForwardToken": f"f/{end:056d}",
            "nextBackwardToken": f"b/{begin:056d}",
        }

    def filter_log_events(self, params: Params, now: float) -> Params:
        """Returns a page of the lines of many streams, oldest first; a filter pattern is words that all must occur."""
        streams, prefix = self._group(params), params.get("logStreamNamePrefix", "")
        if prefix and "logStreamNames" in params:
            raise self.refuse("logStreamNames and logStreamNamePrefix cannot both be given.")
        words = shlex.split(params.get("filterPattern", ""))
        found = [
            (event.timestamp, name, number, event)
            for name in params.get("logStreamNames", streams)
            if name.startswith(prefix)
            for number, event in enumerate(self._between(streams.get(name, []), params))
            if all(word in event.message for word in words)
        ]
        found.sort(key=lambda place: place[:3], reverse=not params.get("startFromHead", True))
        begin = self._place(params.get("nextToken", "0"))
        most = min(params.get("limit", self.page_events), self.page_events)
        page = found[begin : begin + _fitting([event for *_, event in found[begin : begin + most]])]
        answer: Params = {
            "events": [
                event.shown(logStreamName=name, eventId=f"{time:020d}{number:036d}")
                for time, name, number, event in page
            ],
            "searchedLogStreams": [],
        }
        if begin + len(page) < len(found):
            answer["nextToken"] = str(begin + len(page))
        return answer

    def _group(self, params: Params) -> dict[str, list[Event]]:
        if "logGroupName" not in params or "logGroupIdentifier" in params:
            raise self.refuse("tests/fake_aws wants logGroupName, and no logGroupIdentifier.")
        try:
            return self.groups[params["logGroupName"]]
        except KeyError:
            raise ServiceError("ResourceNotFoundException", "The specified log group does not exist.") from None

    def _between(self, events: Sequence[Event], params: Params) -> Sequence[Event]:
        """Returns the events from startTime on and before endTime."""
        times = [event.timestamp for event in events]
        begin = bisect.bisect_left(times, params.get("startTime", 0))
        return events[begin : bisect.bisect_left(times, params["endTime"]) if "endTime" in params else None]

    def _place(self, token: str) -> int:
        if not token.isdecimal():
            raise self.refuse("The specified nextToken is invalid.")
        return int(token)


def _fitting(events: Sequence[Event]) -> int:
    """Returns how many of the first events fit into a page."""
    size = 0
    for number, event in enumerate(events):
        size += len(event.message.encode())
        if size > PAGE_BYTES:
            return max(number, 1)
    return len(events)
