"""The examples of the documents: what a real hub answered in one scripted conversation.

`examples.json` is written by `make examples` and compared with a real hub by the tests, so that no
example can be older than the code. Ids, times and tokens are stood in for by fixed ones.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

PATH = Path(__file__).with_name("examples.json")


class Call(NamedTuple):
    """A REST request and its answer; `body` and `answer` are JSON, or text that is none."""

    title: str
    operation: str
    request: str  # method, path and query
    body: Any
    status: int
    answer: Any


class Sent(NamedTuple):
    """A frame of the socket."""

    title: str
    sender: Literal["client", "server"]
    frame: dict[str, Any]


class Examples(NamedTuple):
    calls: Sequence[Call]
    sent: Sequence[Sent]


@cache
def examples() -> Examples:
    read = orjson.loads(PATH.read_bytes())
    return Examples(
        [Call(**call) for call in read["calls"]], [Sent(**sent) for sent in read["sent"]]
    )
