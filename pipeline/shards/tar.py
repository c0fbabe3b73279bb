"""A shard's URL -> its members in tar order, read once from front to back.

Compression (gzip, zstd) is detected by content, never by name. Members carry the offset of their
bytes where a later range read can use it. A broken header, or an end in the wrong place, raises
`Damaged`, so that no sample after it is lost unnoticed. Nothing is extracted and no link followed.
The cost of reading once: a member must be read before the next one is requested.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards.file_types import file_type
from chiasm.pipeline.shards.tar_end import Damaged, LastBytes, ZerosInTar
from chiasm.pipeline.shards.tar_header import (
    EndMark,
    Header,
    NoBlock,
    begins_header,
    is_header,
    kind_of,
    sparse_extents,
)
from chiasm.pipeline.shards.tar_stream import BAD_BYTES, SEEK_OVER, Bomb, Content
from chiasm.pipeline.storage import Stat, Stream, display_name, open_stream

_TRUNCATED = re.compile("truncated|unexpected end|empty header", re.IGNORECASE)


class ChangedError(SourceError):
    """A shard is not as it was listed. now: how it is, None where it changed while it was read."""

    now: Shard | None = None


class Member:
    """A member of the tar that is no folder.

    offset: of its first data byte, None where its bytes are no range of the shard. header: the
    offset of its first header. kind: what it is in place of a file (a link, a device, ...), "" for
    a file."""

    def __init__(self, tar: Tar, info: tarfile.TarInfo) -> None:
        self.name, self.size, self.kind = info.name, info.size, kind_of(info)
        self.offset = None if tar.compressed or info.issparse() else info.offset_data
        self.header = info.offset
        self._tar, self._info = tar, info
        self.data: bytes | None = None  # once they were read

    def read(self) -> bytes:
        """All its bytes; raises Damaged. To be called before the next member is requested."""
        if self.data is None:
            self.data = self._tar.read(self._info)
        return self.data


class Tar:
    """An open tar: iterate over it once, in a `with`.

    Opening raises SourceError for a file that is no tar and for an empty tar; iterating raises
    Damaged. `notes`, after the last member: the (reason, detail) of each note about the end.
    as_listed: the shard's record; ChangedError where it is another when it is opened or, at the
    latest when the `with` ends, was changed meanwhile.
    """

    def __init__(
        self, url: str, as_listed: Shard | None = None, *, stream: Stream | None = None
    ) -> None:
        self.url, self._as_listed = url, as_listed
        self._ended = False
        self._last: Member | None = None  # the one that came last, if it is no folder
        self._last_bytes = LastBytes()
        self._archive: tarfile.TarFile | None = None
        self._broken: Damaged | None = None
        self._translating_errors = _TranslatingErrors(self._translate)
        with ExitStack() as files:
            self._raw = files.enter_context(stream or open_stream(url))
            found = self._raw.stat()
            self._check_unchanged(found)
            magic = self._raw.peek(tarfile.BLOCKSIZE)[: tarfile.BLOCKSIZE]
            size, seek_over = found.size if found else -1, SEEK_OVER if stream is None else 0
            self._content = Content(files, self._raw, magic, size, seek_over)
            self._zeros = ZerosInTar(self._content)
            self._open(files, magic)
            self._files = files.pop_all()

    @property
    def compressed(self) -> bool:
        return self._content.compressed

    @property
    def notes(self) -> list[tuple[str, str]]:
        return self._zeros.notes

    def __enter__(self) -> Tar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        try:
            if kind is None or issubclass(kind, GeneratorExit):
                self._check_unchanged(self._raw.stat(), reading=True)
        finally:
            self._files.close()

    def __iter__(self) -> Iterator[Member]:
        if self._archive is None:
            assert self._broken is not None
            raise self._broken
        yield from self._members(self._archive)
        self._zeros.check_joined()

    def second_reader(self) -> Tar | None:
        """The same open file as another tar, for `members_from`; to be closed before this one.
        None where going to and fro would be costly."""
        stream = None if self.compressed else self._raw.second_reader()
        return None if stream is None else Tar(self.url, stream=stream)

    def members_from(self, header: int) -> Iterator[Member]:
        """The members from one on, by the offset of its header; of a `second_reader` that was
        iterated over."""
        assert self._archive is not None
        self._ended = False
        self._archive.offset = header
        self._content.go_to(header)
        return self._members(self._archive)

    def _members(self, archive: tarfile.TarFile) -> Iterator[Member]:
        while (info := self._next(archive)) is not None:
            self._last = None if info.isdir() else Member(self, info)
            if self._last is not None:
                yield self._last
            self._skip_to(archive.offset, info)
            if self._ended:
                return

    def _check_unchanged(self, found: Stat | None, *, reading: bool = False) -> None:
        shard = self._as_listed
        if shard is None or found is None:
            return
        sizes = {shard.size, found.size} - {-1}
        if shard.version == found.version and len(sizes) < 2:
            return
        error = ChangedError(
            display_name(self.url),
            expected="the file that was listed",
            found="another: it changed while it was read" if reading else "another by now",
            do="run the same command again",
        )
        if not reading:
            size = found.size if found.size >= 0 else shard.size
            error.now = replace(shard, size=size, version=found.version)
        raise error

    def read(self, info: tarfile.TarInfo) -> bytes:
        """The bytes of the member that came last; raises Damaged."""
        with self._translating_errors:
            self._content.seek(info.offset_data)
            if info.sparse is None:
                data = self._read_exactly(info.size)
                self._last_bytes.add(info.name, info.offset, data)
                return data
            extents, data = sparse_extents(info), bytearray(info.size)
            for start, size in extents:
                data[start : start + size] = self._read_exactly(size)
            return bytes(data)

    def _read_exactly(self, size: int) -> bytes:
        data = self._content.read(size)
        if len(data) < size:
            raise tarfile.ReadError("unexpected end of data")
        return data

    def _open(self, files: ExitStack, magic: bytes) -> None:
        head = b""
        try:
            with self._translating_errors:
                head = self._content.peek(tarfile.BLOCKSIZE)
            archive = self._begin(files)
        except (Damaged, NoBlock) as damage:
            cut = isinstance(damage, Damaged) and damage.reason == "truncated"
            name_alone = self._content.error is not None and len(head) <= 100
            begun = is_header(head) or (cut and (name_alone or begins_header(head)))
            hole = bool(head) and head.count(0) == len(head)
            if not isinstance(damage, Damaged) or not (begun or hole):
                raise self._no_samples(file_type(magic)) from damage
            self._broken = damage  # it is a tar, but cut or damaged in its first member
        else:
            if archive is None:
                raise self._no_samples("an empty tar")
            self._archive = archive

    def _begin(self, files: ExitStack) -> tarfile.TarFile | None:
        """The archive with its first header read, behind zeros too; None for zeros alone."""
        while True:
            first = self._content.tell()
            try:
                # Names that are not UTF-8 become backslash escapes: lone surrogates could not be
                # written.
                with self._translating_errors, self._content.header:
                    archive = tarfile.TarFile(  # closed by `files`
                        fileobj=self._content,  # pyrefly: ignore  # it needs no more of a file
                        tarinfo=Header,
                        encoding="utf-8",
                        errors="backslashreplace",
                    )
                return files.enter_context(archive)
            except EndMark:
                if not self._goes_on(first):
                    return None

    def _no_samples(self, found: str) -> SourceError:
        do = "name shards, each a tar of members such as 0001.jpg and 0001.txt"
        return SourceError(display_name(self.url), expected="a tar of samples", found=found, do=do)

    def _next(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        while True:
            archive.members = []  # pyrefly: ignore  # else tarfile keeps every header of the shard
            try:
                with self._translating_errors, self._content.header:
                    info = archive.next()
                    if info is None:  # tarfile returns None for an invalid header
                        raise tarfile.ReadError("bad header")
                    if info.size < 0:
                        raise tarfile.ReadError(f"a size of {info.size} bytes")
                    return info
            except EndMark:
                if not self._goes_on(archive.offset):
                    return None
                archive.offset = self._content.tell()
                archive.pax_headers = {}  # those of the archive before
            except NoBlock:
                self._ends_without_mark(archive.offset)
                return None

    def _goes_on(self, first: int) -> bool:
        """Whether members follow zeros that begin at an offset; to the end of the file, where none
        do: a compressed shard has its checksum there."""
        try:
            with self._translating_errors:
                zeros = self._zeros.pass_over(first)
                too_many = self._zeros.are_too_many(zeros)
        except Damaged as damage:
            if damage.reason == "damaged":
                raise
            # All members were read: a cut is a note here, and so are too many zeros.
            truncated = damage.reason == "truncated"
            self.notes.append(("cut_after_end" if truncated else "data_after_end", damage.detail))
            return False
        last = self._last
        if last is not None and last.data is not None:
            missing = self._last_bytes.missing(last.name, last.header, last.data, cut=too_many)
            if missing:
                detail = f"{last.name} ends in {missing:,} zeros, and zeros follow it"
                raise Damaged("truncated", detail, last_is_cut=True)
        with self._translating_errors:
            return self._zeros.are_followed(zeros)

    def _skip_to(self, offset: int, info: tarfile.TarInfo) -> None:
        """Go to the header behind a member; checks that the bytes before it exist."""
        with self._translating_errors:
            if offset == self._content.tell():
                return
            self._content.seek(offset)
            reached = self._content.tell()
            if reached >= offset:
                return
            if info.issparse() or reached < info.offset_data + info.size:
                raise tarfile.ReadError("unexpected end of data")
            self._ends_without_mark(reached)  # only zeros behind the member are missing

    def _ends_without_mark(self, offset: int) -> None:
        self._ended = True
        detail = f"the file ends at byte {offset}, behind a whole member"
        self.notes.append(("no_end_mark", detail))
        try:
            with self._translating_errors:
                self._content.read(1)
        except Damaged as damage:
            if damage.reason == "damaged":  # the checksum of a compressed shard
                raise

    def _translate(self, error: Exception) -> Exception:
        """The exception for callers where reading raised `error`."""
        if isinstance(error, EndMark | NoBlock) or not isinstance(error, BAD_BYTES):
            return error
        if isinstance(error, OSError) and error.errno:  # the disk failed, not the content
            return SourceError(display_name(self.url), found=error.strerror or str(error))
        return Damaged(self._reason_of(error), str(error) or type(error).__name__)

    def _reason_of(self, error: Exception) -> str:
        if isinstance(error, Bomb):
            return "bomb"
        if isinstance(error, EOFError) or _TRUNCATED.search(str(error)):
            return "truncated"
        if not isinstance(error, tarfile.TarError | IndexError):
            return "damaged"
        try:
            return "damaged" if self._content.read(1) else "truncated"
        except BAD_BYTES:
            return "damaged"


class _TranslatingErrors:
    """A context that raises `translate(error)` in place of an error.

    A class whose instance is entered many times: creating four of contextlib's for each member
    would take a tenth of the reading time."""

    def __init__(self, translate: Callable[[Exception], Exception]) -> None:
        self._translate = translate

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            translated = self._translate(error)
            if translated is not error:
                raise translated from error
