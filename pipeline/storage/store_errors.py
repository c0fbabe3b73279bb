"""What a request to a store can end in, beside what was asked for. `remote.py` turns these into
the errors of `chiasm.pipeline.errors`.

    StoreError
    |-- TransientError      500, 503, 429, a broken connection, a body that is too short: retried
    |   `-- Conflict        409: another request for the same name is under way
    |-- RetriesExhausted    every attempt ended in a TransientError
    |-- NotFound            404
    |-- Refused             401, 403 and whatever else is the same at every attempt
    |   `-- Unsupported     501: the store does not know the request
    |-- RangeNotSatisfiable 416
    |-- RangesUnsupported   the server sends whole files only (object_store.py)
    |-- AlreadyExists       412: a name that was to be new is taken
    |-- VersionChanged      the object is not the one that was opened
    `-- Cancelled           the answer is not wanted any more
"""

from __future__ import annotations

import re

_MAX_MESSAGE = 200  # characters of a library's message


class StoreError(Exception):
    """A request to a store failed."""


class TransientError(StoreError):
    """A failure that the next attempt may not meet."""


class Conflict(TransientError):
    """409: another request for the same name is under way. At some stores: the name is taken."""


class RetriesExhausted(StoreError):
    """Every attempt ended in a TransientError."""


class NotFound(StoreError):
    """404: no such object."""


class Refused(StoreError):
    """401, 403 and whatever else is the same at every attempt. `do`: what a person can do."""

    def __init__(
        self, found: str, do: str = "check the credentials and the endpoint (docs/operations.md)"
    ) -> None:
        super().__init__(found)
        self.do = do


class Unsupported(Refused):
    """501: the store does not know the request."""


class RangeNotSatisfiable(StoreError):
    """416: the object ends before the first byte of the range."""


class AlreadyExists(StoreError):
    """412: a name that was to be new is taken."""


class VersionChanged(StoreError):
    """The object is not the one that was opened."""


class Cancelled(StoreError):
    """The answer is not wanted any more."""


def one_line(text: str) -> str:
    """Foreign text as one line of at most 200 printable characters."""
    text = " ".join(text.split())
    return "".join(
        character if character.isprintable() else "?" for character in text[:_MAX_MESSAGE]
    )


def one_line_message(error: BaseException) -> str:
    """An error's text by `one_line`, or its type where it has none. URLs in it lose user and query,
    which can hold passwords and signatures."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"(\w+://)[^/@\s]*@", r"\1", text)
    return one_line(re.sub(r"(\w+://[^?\s]*)\?[^\s\"')]*", r"\1", text))


def raise_if_untrusted(error: BaseException | None, variable: str) -> None:
    """Raise Refused where `error` comes from a certificate that was not accepted, since no retry
    changes that. variable: the environment variable that names a file of trusted authorities."""
    while error is not None:
        if reason := getattr(error, "verify_message", ""):  # ssl.SSLCertVerificationError
            found = f"a certificate that is not trusted ({reason})"
            raise Refused(found, f"name the file of its authority in {variable}") from error
        error = error.__cause__ or error.__context__
