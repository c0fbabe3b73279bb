"""A shard's URL -> its members in the order of the tar, read once from front to back.

Compression (gzip, zstd) is told from the content, never from the name. Members carry the offset of
their bytes where a later range read can use it. How a tar ends matters as much as what it holds: a
broken header, or an end where none may be, raises `Damaged`, so that no sample vanishes behind it.
Names are only text: nothing is extracted, no link followed. The cost of reading once: a member must
be read before the next one is asked for.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.shards.tar_header import (
    EndMark,
    Header,
    NoBlock,
    is_header,
    kind_of,
    pieces_of,
)
from chiasm.pipeline.shards.tar_stream import BAD_BYTES, Bomb, Content
from chiasm.pipeline.storage import display_name, open_stream

_CHUNK = 1 << 16
_CUT = re.compile("truncated|unexpected end|empty header", re.IGNORECASE)

_KINDS = {  # how files begin that are taken for shards -> what a message calls them
    b"\x1f\x8b": "a gzip file without a tar in it",
    b"\x28\xb5\x2f\xfd": "a zstd file without a tar in it",
    b"\xfd7zXZ\x00": "an xz file (of the compressed tars, .tar.gz and .tar.zst are read)",
    b"BZh": "a bzip2 file (of the compressed tars, .tar.gz and .tar.zst are read)",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a RIFF file (WebP, WAV or AVI)",
    b"PK\x03\x04": "a zip file",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer (git lfs pull fetches the file itself)",
}


DAMAGES = ("truncated", "damaged", "bomb")


class Damaged(Exception):
    """A tar cannot be read on. `reason`, one of DAMAGES: truncated (its bytes end), damaged (they
    are wrong) or bomb (there are too many of them)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Member:
    """A member of the tar that is no folder. `offset`: of its first byte, None where no range read
    gives it. `kind`: what it is in place of a file (a link, a device, ...), "" for a file."""

    def __init__(self, tar: Tar, info: tarfile.TarInfo) -> None:
        self.name, self.size, self.kind = info.name, info.size, kind_of(info)
        self.offset = None if tar.compressed or info.issparse() else info.offset_data
        self._tar, self._info = tar, info

    def read(self) -> bytes:
        """All its bytes, before the next member is asked for; raises Damaged."""
        return self._tar.read(self._info)


class Tar:
    """An open tar: iterate over it once, in a `with`.

    Opening raises SourceError for what is no tar, or an empty one; iterating raises Damaged.
    After the last member `odd_end` is (reason, detail) where something is strange about the end.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.odd_end: tuple[str, str] | None = None
        self._archive: tarfile.TarFile | None = None
        self._broken: Damaged | None = None
        self._told_as_damage = _ToldAsDamage(self._told)
        with ExitStack() as files:
            raw = files.enter_context(open_stream(url))
            magic = raw.peek(tarfile.BLOCKSIZE)[: tarfile.BLOCKSIZE]
            self._content = Content(files, raw, magic)
            self._open(files, magic)
            self._files = files.pop_all()

    @property
    def compressed(self) -> bool:
        return self._content.compressed

    def __enter__(self) -> Tar:
        return self

    def __exit__(self, *raised: object) -> None:
        self._files.close()

    def __iter__(self) -> Iterator[Member]:
        if self._archive is None:
            assert self._broken is not None
            raise self._broken
        while (info := self._next(self._archive)) is not None:
            if not info.isdir():
                yield Member(self, info)
            self._skip_to(self._archive.offset)
        if self.odd_end is None:
            self._check_padding(self._archive)

    def read(self, info: tarfile.TarInfo) -> bytes:
        """The bytes of the member that came last; raises Damaged."""
        with self._told_as_damage:
            self._content.seek(info.offset_data)
            if info.sparse is None:
                return self._exactly(info.size)
            pieces, whole = pieces_of(info), bytearray(info.size)
            for start, size in pieces:
                whole[start : start + size] = self._exactly(size)
            return bytes(whole)

    def _exactly(self, size: int) -> bytes:
        data = self._content.read(size)
        if len(data) < size:
            raise tarfile.ReadError("unexpected end of data")
        return data

    def _open(self, files: ExitStack, magic: bytes) -> None:
        head = b""
        try:
            with self._told_as_damage:
                head = self._content.peek(tarfile.BLOCKSIZE)
                # Names that are no UTF-8 become readable and, unlike lone surrogates, writable.
                with self._content.header:
                    archive = tarfile.TarFile(  # closed by `files`
                        fileobj=self._content,  # pyrefly: ignore  # of a file it uses no more
                        tarinfo=Header,
                        encoding="utf-8",
                        errors="backslashreplace",
                    )
        except EndMark as end:
            raise self._no_samples("an empty tar") from end
        except (Damaged, NoBlock) as damage:
            if not is_header(head) or not isinstance(damage, Damaged):
                raise self._no_samples(_kind_of(magic)) from damage
            self._broken = damage  # a tar all right, but cut or damaged in its first member
        else:
            self._archive = files.enter_context(archive)

    def _no_samples(self, found: str) -> SourceError:
        do = "name shards, each a tar of members such as 0001.jpg and 0001.txt"
        return SourceError(display_name(self.url), expected="a tar of samples", found=found, do=do)

    def _next(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        archive.members = []  # pyrefly: ignore  # or tarfile keeps every header of the shard
        try:
            with self._told_as_damage, self._content.header:
                info = archive.next()
                if info is None:  # so tarfile says that it cannot make sense of a header
                    raise tarfile.ReadError("bad header")
                if info.size < 0:
                    raise tarfile.ReadError(f"a size of {info.size} bytes")
                return info
        except EndMark:
            return None
        except NoBlock:
            raise Damaged("truncated", f"no end mark at byte {archive.offset}") from None

    def _skip_to(self, offset: int) -> None:
        """Go to where the next header begins, and see that what lies before it is there."""
        with self._told_as_damage:
            if offset != self._content.tell():
                self._content.seek(offset)
                if self._content.tell() < offset:
                    raise tarfile.ReadError("unexpected end of data")

    def _check_padding(self, archive: tarfile.TarFile) -> None:
        """Read what follows the end mark: zeros and, in a compressed shard, its checksum."""
        try:
            with self._told_as_damage:
                while chunk := self._content.read(_CHUNK):
                    if chunk.count(0) != len(chunk):
                        detail = f"more follows the end mark at byte {archive.offset}"
                        self.odd_end = ("data_after_end", detail)
                        return
        except Damaged as damage:
            if damage.reason == "damaged":
                raise
            cut = damage.reason == "truncated"  # took no member, nor did an endless row of zeros
            self.odd_end = ("no_end_mark" if cut else "data_after_end", damage.detail)

    def _told(self, error: Exception) -> Exception:
        """What callers are told where reading raised `error`."""
        if isinstance(error, EndMark | NoBlock) or not isinstance(error, BAD_BYTES):
            return error
        if isinstance(error, OSError) and error.errno:  # the disk fails, not what lies on it
            return SourceError(display_name(self.url), found=error.strerror or str(error))
        return Damaged(self._reason_of(error), str(error) or type(error).__name__)

    def _reason_of(self, error: Exception) -> str:
        if isinstance(error, Bomb):
            return "bomb"
        if isinstance(error, EOFError) or _CUT.search(str(error)):
            return "truncated"
        if not isinstance(error, tarfile.TarError | IndexError):
            return "damaged"
        try:
            return "damaged" if self._content.read(1) else "truncated"
        except BAD_BYTES:
            return "damaged"


def _kind_of(head: bytes) -> str:
    if not head:
        return "an empty file"
    for magic, kind in _KINDS.items():
        if head.startswith(magic):
            return kind
    begins = head[:16].decode("ascii", "backslashreplace")
    return f"a file that begins with {begins!r}"


class _ToldAsDamage:
    """A context in which what bytes and disks raise becomes what callers of a Tar know.

    A class, entered again and again: four of contextlib's a member would be a tenth of reading."""

    def __init__(self, told: Callable[[Exception], Exception]) -> None:
        self._told = told

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and (told := self._told(error)) is not error:
            raise told from error
