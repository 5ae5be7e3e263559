"""Errors of requests, in the form of OpenAI's API."""

import os
from collections.abc import Mapping
from traceback import format_exception
from typing import Any


class RequestError(Exception):
    """A request that is answered with an error. param: the field that is wrong. code: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> RequestError:
    return RequestError(400, message, code, param)


def for_the_log(bug: Exception) -> str:
    """Describe an error that is a bug without its text, which may quote a prompt; with PIT_DEBUG=1 with a traceback."""
    where = f"\n{''.join(format_exception(bug))}" if os.environ.get("PIT_DEBUG") else "; PIT_DEBUG=1 shows where"
    return f"{type(bug).__name__} in pit serve{where}"
