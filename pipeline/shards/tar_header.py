"""One header of a tar: tarfile's parser, with its silent failures and its worst cases removed.

tarfile takes a broken header, or the end of the file inside one, for the end of the archive without
an error; here both raise. Headers that no tar program writes, and that would cost memory or minutes
to read, are refused.
"""

from __future__ import annotations

import re
import tarfile
from typing import Any, Self

from chiasm.pipeline.shards.tar_stream import MAX_HEADER

# Bytes of global headers, which are kept and copied for each member.
_MAX_GLOBAL = 1 << 14

# The regular expression of tarfile before Python 3.11.10 and 3.12.6 is quadratic in such a run.
_MANY_DIGITS = re.compile(rb"\d{1000}")

_SIZE, _SUM = re.compile(rb"[0-7]{11}[ \0]"), re.compile(rb"[0-7]{6}\0 ")

_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX)

_KINDS = {  # types of members that are no files -> their name in messages
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class EndMark(tarfile.HeaderError):
    """A block of zeros where a header could be: the tar ends here."""


class NoBlock(tarfile.HeaderError):
    """The file ends where a header could be."""


class Header(tarfile.TarInfo):
    """A header whose parser raises EndMark, NoBlock or ReadError: tarfile does not swallow them."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if buf.count(0) == len(buf):
            if len(buf) == tarfile.BLOCKSIZE:
                raise EndMark("end of the tar")
            raise NoBlock("truncated before a header")
        header = cls._plain(buf, encoding, errors)
        if header is not None:
            return header
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.size < 0:
            raise tarfile.ReadError(f"a size of {header.size} bytes")
        if header.type in _EXTENDED and header.size > MAX_HEADER:
            raise tarfile.ReadError(f"an extended header of {header.size} bytes")
        return header

    @classmethod
    def _plain(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self | None:
        """A common file's header in a fifth of tarfile's time; None for any other header.

        Only name and size are read; owner, mode and time keep their defaults."""
        if len(buf) != tarfile.BLOCKSIZE or buf[156:157] != tarfile.REGTYPE or buf[345]:
            return None  # not a file's, or with a name prefix
        if buf[257:262] != b"ustar" or not _SIZE.fullmatch(buf, 124, 136):
            return None
        # The checksum counts its own eight bytes as blanks.
        total = sum(buf) - sum(buf[148:156]) + 8 * 32
        if not _SUM.fullmatch(buf, 148, 156) or int(buf[148:154], 8) != total:
            return None
        header = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        header.size = int(buf[124:135], 8)
        return header

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Called by tarfile for every header, extended ones included; documented as a method that
        subclasses may override. Returns the member to which the header belongs."""
        if self.type in _PAX:
            content: Any = archive.fileobj
            if _MANY_DIGITS.search(content.peek(self.size)):
                raise tarfile.ReadError("a pax header with a number of 1000 digits")
            found = super()._proc_member(archive)  # pyrefly: ignore
            kept = archive.pax_headers
            if sum(len(name) + len(value) for name, value in kept.items()) > _MAX_GLOBAL:
                raise tarfile.ReadError(f"more than {_MAX_GLOBAL} bytes of global headers")
            return found
        return super()._proc_member(archive)  # pyrefly: ignore


def is_header(block: bytes) -> bool:
    """Whether 512 bytes are a valid tar header."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.HeaderError:
        return False
    return True


def begins_header(head: bytes) -> bool:
    """Whether fewer than 512 bytes are the beginning of a tar header: a name with zeros behind it,
    as no text has them, then numbers and, in most dialects, `ustar`."""
    name, numbers, magic = head[:100].rstrip(b"\0"), head[100:156], head[257:262]
    if len(head) >= tarfile.BLOCKSIZE or not name or (len(head) <= 100 and name == head):
        return False
    return (
        min(name) >= 32  # no control characters, nor zeros in the middle
        and not numbers.strip(b"01234567 \0")
        and (magic == bytes(len(magic)) or b"ustar".startswith(magic))
    )


def kind_of(info: tarfile.TarInfo) -> str:
    """The name of a member's type for messages, "" for files and folders."""
    if info.type == tarfile.REGTYPE or info.isreg() or info.isdir():
        return ""
    return _KINDS.get(
        info.type, f"a member of type {info.type.decode('ascii', 'backslashreplace')}"
    )


def sparse_extents(info: tarfile.TarInfo) -> list[tuple[int, int]]:
    """(start, size) of the data extents of a sparse member, in order; the rest of it is zeros.

    Raises tarfile.ReadError where they overlap or exceed the member."""
    sparse: Any = info.sparse  # missing in tarfile's type hints
    extents = [extent for extent in sparse or () if extent[1]]  # empty ones fill up headers
    end = 0
    for start, size in extents:
        if start < end or size < 0 or start + size > info.size:
            raise tarfile.ReadError("extents of a sparse file that overlap or exceed it")
        end = start + size
    return extents
