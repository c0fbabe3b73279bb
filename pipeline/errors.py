"""Every exception of chiasm that a caller is meant to see, in one tree.

    ChiasmError                 one line: what, expected, found, what to do        exit code 1
    |-- UsageError              a flag, a setting or a name that cannot be meant   exit code 2
    |-- SourceError             a shard that cannot be found, opened or is no tar
    |   `-- UnreachableError    a store that gave no answer at any attempt: the next may find one
    |-- StorageError            a target that cannot be written: full, read-only, gone
    |-- EncoderError            a model that cannot be loaded or does not fit
    `-- CollectionError         a collection that is not what it should be
        `-- StaleIndexError     an index that does not cover the embeddings beside it

A sample that cannot be used is not an exception for the caller: it becomes a `Dropped` record.
"""


class ChiasmError(Exception):
    """An error told in one line.

    >>> print(ChiasmError("a.tar", expected="a tar", found="a PNG", do="name the shard itself"))
    a.tar: expected a tar, found a PNG; name the shard itself
    """

    exit_code = 1

    def __init__(self, what: str, *, expected: str = "", found: str = "", do: str = "") -> None:
        self.what, self.expected, self.found, self.do = what, expected, found, do
        super().__init__(what, expected, found, do)

    def __str__(self) -> str:
        middle = [
            f"expected {self.expected}" if self.expected else "",
            f"found {self.found}" if self.found else "",
        ]
        told = ", ".join(part for part in middle if part)
        line = f"{self.what}: {told}" if told else self.what
        return " ".join((f"{line}; {self.do}" if self.do else line).split())

    def __reduce__(self):
        # Ray carries exceptions between processes by pickle, which replays positional args only.
        state = {"what": self.what, "expected": self.expected, "found": self.found, "do": self.do}
        return _rebuild, (type(self), state)


def _rebuild(kind: type[ChiasmError], state: dict[str, str]) -> ChiasmError:
    return kind(**state)


class UsageError(ChiasmError):
    """Wrong usage: nothing was done."""

    exit_code = 2


class SourceError(ChiasmError):
    """A shard cannot be read."""


class UnreachableError(SourceError):
    """A shard's store gave no answer at any attempt; the shard itself may be sound."""


class StorageError(ChiasmError):
    """A target cannot be written."""


class EncoderError(ChiasmError):
    """A model cannot be loaded, or does not fit what is asked of it."""


class CollectionError(ChiasmError):
    """A collection is not what it should be."""


class StaleIndexError(CollectionError):
    """The index does not cover the embeddings beside it."""


def require_at_least(least: float, **settings: float) -> None:
    """Refuse settings below `least`; dots in their names are written as two underscores."""
    for name, value in settings.items():
        if value < least:
            raise UsageError(
                name.replace("__", "."), expected=f"{least:g} or more", found=f"{value:g}"
            )


class Undecodable(Exception):
    """A picture that cannot be used. `reason`: a key of REASONS; `detail`: the decoder's words."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
