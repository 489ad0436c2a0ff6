"""The one shape of errors (design 3.4)."""

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from api.documents.scalars import ErrorCode


class Error(TypedDict):
    """Why an event was rejected."""

    statusCode: Annotated[int, Field(ge=400, le=599, description="As HTTP has it")]
    message: ErrorCode
    detail: Annotated[str, Field(description="For people; may change")]
    retryable: Annotated[
        bool, Field(description="True: undecided, the same may be sent again unchanged")
    ]


class FrameError(Error):
    """Why a frame was refused."""

    retryAfterMs: NotRequired[Annotated[int, Field(ge=0, description="With `RATE_LIMITED`")]]


class AnswerError(Error):
    requestId: Annotated[str, Field(description="The answer's `X-Request-Id`")]


class ErrorAnswer(TypedDict):
    """The body of every answer from 400 on."""

    error: AnswerError
