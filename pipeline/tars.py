"""A shard's URL -> its regular files in the order of the tar, read once from front to back.

Compression (gzip, zstd) is told from the content, never from the name. Members carry the offset of
their bytes where a later range read can use it. How a tar ends matters as much as what it holds:
tarfile takes a broken header, or the end of the file inside one, for the end of the archive and
says nothing; here both raise `Damaged`, so that no sample vanishes behind them. The cost of reading
once: a member must be read before the next one is asked for.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.storage import open_stream, shown

_CHUNK = 1 << 16
_GZIP = re.compile(rb"\x1f\x8b", re.DOTALL)
# The second form is a skippable frame, with which parallel compressors begin.
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)

# What tarfile and the decompressors raise for bytes that are not what they should be.
_BAD_BYTES = (
    tarfile.TarError,
    EOFError,
    OSError,
    OverflowError,
    RecursionError,
    ValueError,
    zlib.error,
)

_CUT = re.compile("truncated|unexpected end|empty header", re.IGNORECASE)

# A long name or a pax header is read into memory whole; real ones have some hundred bytes.
_MAX_EXTENDED_HEADER = 1 << 20
_EXTENDED_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)

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


class Damaged(Exception):
    """A tar cannot be read on. `reason`: truncated (its bytes end) or damaged (they are wrong)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Member:
    """A regular file of the tar. `offset`: of its first byte, None where no range read gives it."""

    def __init__(self, tar: Tar, info: tarfile.TarInfo) -> None:
        self.name, self.size = info.name, info.size
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
        self.compressed = False
        self.odd_end: tuple[str, str] | None = None
        self._archive: tarfile.TarFile | None = None
        self._broken: Damaged | None = None
        with ExitStack() as files:
            self._open(files, files.enter_context(open_stream(url)))
            self._files = files.pop_all()

    def __enter__(self) -> Tar:
        return self

    def __exit__(self, *raised: object) -> None:
        self._files.close()

    def __iter__(self) -> Iterator[Member]:
        if self._archive is None:
            assert self._broken is not None
            raise self._broken
        while (info := self._next(self._archive)) is not None:
            if info.isreg():
                yield Member(self, info)
        if self.odd_end is None:
            self._check_padding(self._archive)

    def read(self, info: tarfile.TarInfo) -> bytes:
        """The bytes of the member that came last; raises Damaged."""
        assert self._archive is not None
        with self._told_as_damage():
            file = self._archive.extractfile(info)
            return file.read() if file else b""

    def _open(self, files: ExitStack, raw: io.BufferedReader) -> None:
        magic, head = raw.peek(tarfile.BLOCKSIZE)[: tarfile.BLOCKSIZE], b""
        try:
            with self._told_as_damage():
                stream = self._decompressed(files, raw, magic)
                head = stream.peek(tarfile.BLOCKSIZE)[: tarfile.BLOCKSIZE]
                # Names that are no UTF-8 become readable and, unlike lone surrogates, writable.
                archive = tarfile.open(  # noqa: SIM115  closed by `files`
                    fileobj=stream,
                    mode="r|",
                    tarinfo=_Header,
                    encoding="utf-8",
                    errors="backslashreplace",
                )
        except _EndMark as end:
            raise self._no_samples("an empty tar") from end
        except (Damaged, _NoBlock) as damage:
            if not _is_header(head) or not isinstance(damage, Damaged):
                raise self._no_samples(_kind_of(magic)) from damage
            self._broken = damage  # a tar all right, but cut or damaged in its first member
        else:
            self._archive = files.enter_context(archive)

    def _no_samples(self, found: str) -> SourceError:
        do = "name shards, each a tar of members such as 0001.jpg and 0001.txt"
        return SourceError(shown(self.url), expected="a tar of samples", found=found, do=do)

    def _decompressed(
        self, files: ExitStack, raw: io.BufferedReader, magic: bytes
    ) -> io.BufferedReader | _Decompressed:
        self.compressed = True
        if _GZIP.match(magic):
            return _Decompressed(files.enter_context(gzip.GzipFile(fileobj=raw)).read1)
        if _ZSTD.match(magic):
            zstd = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
            # Arrow gives all that is asked for or nothing, so it is asked for a block at a time.
            stream = files.enter_context(zstd)
            return _Decompressed(lambda size: stream.read(min(size, tarfile.BLOCKSIZE)))
        self.compressed = False
        return raw

    def _next(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        archive.members = []  # pyrefly: ignore  # or tarfile keeps every header of the shard
        try:
            with self._told_as_damage():
                info = archive.next()
                if info is None:  # so tarfile says that it cannot make sense of a header
                    raise tarfile.ReadError("bad header")
                return info
        except _EndMark:
            return None
        except _NoBlock:
            raise Damaged("truncated", f"no end mark at byte {archive.offset}") from None

    def _check_padding(self, archive: tarfile.TarFile) -> None:
        """Read what follows the end mark: zeros and, in a compressed shard, its checksum."""
        try:
            with self._told_as_damage():
                while chunk := archive.fileobj.read(_CHUNK):
                    if chunk.count(0) != len(chunk):
                        detail = f"more follows the end mark at byte {archive.offset}"
                        self.odd_end = ("data_after_end", detail)
                        return
        except Damaged as damage:
            if damage.reason != "truncated":
                raise
            self.odd_end = ("no_end_mark", damage.detail)  # the cut took no member

    @contextmanager
    def _told_as_damage(self) -> Iterator[None]:
        try:
            yield
        except (_EndMark, _NoBlock):
            raise
        except _BAD_BYTES as error:
            if isinstance(error, OSError) and error.errno:  # the disk fails, not what lies on it
                raise SourceError(shown(self.url), found=error.strerror or str(error)) from error
            detail = str(error) or type(error).__name__
            raise Damaged("truncated" if self._ends(error) else "damaged", detail) from error

    def _ends(self, error: Exception) -> bool:
        if isinstance(error, EOFError) or _CUT.search(str(error)):
            return True
        if self._archive is None or not isinstance(error, tarfile.TarError):
            return False
        try:
            return not self._archive.fileobj.read(1)
        except _BAD_BYTES:
            return False


class _Decompressed(io.BufferedIOBase):
    """The content of a compressed file, with all that comes before a cut or an error in it.

    A decompressor in a BufferedReader would lose up to a buffer of good ones to the exception."""

    def __init__(self, read_some: Callable[[int], bytes]) -> None:
        self._read_some = read_some
        self._ahead = b""
        self._error: Exception | None = None

    def peek(self, size: int) -> bytes:
        data = self.read(size)
        self._ahead = data + self._ahead
        return data

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, none at the end; raises where none is left before an error."""
        assert size is not None and size >= 0
        parts, self._ahead = [self._ahead[:size]], self._ahead[size:]
        missing = size - len(parts[0])
        while missing and self._error is None:
            try:
                part = self._read_some(missing)
            except _BAD_BYTES as error:
                self._error = error
                break
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        if self._error is not None and missing == size:
            raise self._error
        return b"".join(parts)


class _EndMark(tarfile.HeaderError):
    """A block of zeros where a header could be: the tar ends here."""


class _NoBlock(tarfile.HeaderError):
    """The bytes end where a header could be."""


class _Header(tarfile.TarInfo):
    """A header that tells how the tar ends; tarfile's own exceptions for it do not get through."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if buf.count(0) == len(buf):
            if len(buf) == tarfile.BLOCKSIZE:
                raise _EndMark("end of the tar")
            raise _NoBlock("truncated before a header")
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.type in _EXTENDED_HEADERS and header.size > _MAX_EXTENDED_HEADER:
            raise tarfile.ReadError(f"an extended header of {header.size} bytes")
        return header


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.HeaderError:
        return False
    return True


def _kind_of(head: bytes) -> str:
    if not head:
        return "an empty file"
    for magic, kind in _KINDS.items():
        if head.startswith(magic):
            return kind
    begins = head[:16].decode("ascii", "backslashreplace")
    return f"a file that begins with {begins!r}"
