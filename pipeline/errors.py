"""Every exception of chiasm for callers, in one tree.

    ChiasmError                 one line: what, expected, found, what to do        exit code 1
    |-- UsageError              a flag, a setting or a name that is not valid    exit code 2
    |-- SourceError             a shard that cannot be found or opened, or is no tar
    |   `-- UnreachableError    a store that did not answer any attempt; a later one may succeed
    |-- StorageError            a target that cannot be written: full, read-only, gone
    |-- EncoderError            a model that cannot be loaded or does not fit
    `-- CollectionError         a collection that is damaged, missing or of another encoder
        `-- StaleIndexError     an index that does not cover the embeddings beside it

    Undecodable                 one input of a sample; decoders raise it, the pipeline catches it

A sample that cannot be used raises nothing to callers: it becomes a `Dropped` record.
"""


class ChiasmError(Exception):
    """An error as one line: what, expected, found, what to do.

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
        details = ", ".join(part for part in middle if part)
        line = f"{self.what}: {details}" if details else self.what
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
    """A shard's store did not answer any attempt; the shard itself may be intact."""


class StorageError(ChiasmError):
    """A target cannot be written."""


class EncoderError(ChiasmError):
    """A model cannot be loaded, or does not fit what is asked of it."""


class CollectionError(ChiasmError):
    """A collection is damaged, missing, or was made by another encoder."""


class StaleIndexError(CollectionError):
    """The index does not cover the embeddings beside it."""


def require_at_least(least: float, **settings: float) -> None:
    """Raise UsageError for settings below `least`; two underscores in a name stand for a dot."""
    for name, value in settings.items():
        if value < least:
            raise UsageError(
                name.replace("__", "."), expected=f"{least:g} or more", found=f"{value:g}"
            )


class Undecodable(Exception):
    """An input that cannot be used. reason: one of a closed list, such as `images.REASONS`; detail:
    the decoder's message."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
