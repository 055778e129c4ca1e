"""`RequestError`: the answer to a request that cannot be served."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """A request, or one of its files, that cannot be answered.

    Args:
        status: HTTP status.
        code: Name of the error for programs, such as `"too_large"`.
        message: Sentence for people: the problem, and the expected form.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def to_dict(self) -> dict[str, Any]:
        """Return the error for JSON."""
        return {"code": self.code, "message": self.message}
