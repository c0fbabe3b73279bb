"""One header of a tar: what tarfile makes of it, without what it hides and what it does too long.

tarfile takes a broken header, or the end of the file inside one, for the end of the archive and
says nothing; here each raises, so that it can be told. Refused is what no tar program writes and
reading would take memory or minutes for.
"""

from __future__ import annotations

import re
import tarfile
from typing import Any, Self

from chiasm.pipeline.shards.tar_stream import MOST_HEADER

# Records of a global header are kept, and copied for each member.
_MOST_GLOBAL = 1 << 14

# tarfile of Python before 3.11.10 and 3.12.6 tries such a run from each of its digits on.
_MANY_DIGITS = re.compile(rb"\d{1000}")

_SIZE, _SUM = re.compile(rb"[0-7]{11}[ \0]"), re.compile(rb"[0-7]{6}\0 ")

_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX)

_KINDS = {  # of members that are no files, and what a person calls them
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class EndMark(tarfile.HeaderError):
    """A block of zeros where a header could be: the tar ends here."""


class NoBlock(tarfile.HeaderError):
    """The bytes end where a header could be."""


class Header(tarfile.TarInfo):
    """A header that tells how the tar ends; tarfile's own exceptions for it do not get through."""

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
        if header.type in _EXTENDED and header.size > MOST_HEADER:
            raise tarfile.ReadError(f"an extended header of {header.size} bytes")
        return header

    @classmethod
    def _plain(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self | None:
        """The header of a file as nearly all are, in a fifth of tarfile's time; None for any other.

        Read is what a sample needs; owner, mode and time keep their defaults."""
        if len(buf) != tarfile.BLOCKSIZE or buf[156:157] != tarfile.REGTYPE or buf[345]:
            return None  # no file's, or with the first part of a long name
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
        """Called by tarfile for each header, an extended one too; it says that it may be replaced.

        Gives the member to which the header belongs."""
        if self.type in _PAX:
            content: Any = archive.fileobj
            if _MANY_DIGITS.search(content.peek(self.size)):
                raise tarfile.ReadError("a pax header with a number of 1000 digits")
            found = super()._proc_member(archive)  # pyrefly: ignore
            kept = archive.pax_headers
            if sum(len(name) + len(value) for name, value in kept.items()) > _MOST_GLOBAL:
                raise tarfile.ReadError(f"more than {_MOST_GLOBAL} bytes of global headers")
            return found
        return super()._proc_member(archive)  # pyrefly: ignore


def is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.HeaderError:
        return False
    return True


def kind_of(info: tarfile.TarInfo) -> str:
    """What a member is that is neither a file nor a folder; "" where it is one."""
    if info.isreg() or info.isdir():
        return ""
    return _KINDS.get(
        info.type, f"a member of type {info.type.decode('ascii', 'backslashreplace')}"
    )


def pieces_of(info: tarfile.TarInfo) -> list[tuple[int, int]]:
    """(start, size) of what a sparse member has, in order; the rest of it are zeros.

    Raises tarfile.ReadError where they do not lie in it one after the other."""
    told: Any = info.sparse  # tarfile's types know no pieces
    pieces, at = [piece for piece in told or () if piece[1]], 0  # empty ones fill headers
    for start, size in pieces:
        if start < at or size < 0 or start + size > info.size:
            raise tarfile.ReadError("pieces of a sparse file that do not lie in it")
        at = start + size
    return pieces
