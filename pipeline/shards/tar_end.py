"""What zeros in a tar mean: its end, the end of one of several archives, or members that are lost.

A tar ends with two blocks of zeros, the mark, and more of them up to the end of a record. In the
middle of a file they are the end of an archive that another was joined to (`cat a.tar b.tar`), or
what a bad block of a disk and a missing piece of a download leave. A header directly behind zeros
that fill a record begins another archive; other zeros stand for members that are lost.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass

from chiasm.pipeline.shards.captions import CAPTION_EXTENSIONS
from chiasm.pipeline.shards.tar_header import begins_header, is_header
from chiasm.pipeline.shards.tar_stream import Content

_BLOCK = tarfile.BLOCKSIZE
_MARK = 2 * _BLOCK
_RECORD = tarfile.RECORDSIZE  # to whose multiples tar, bsdtar and Python fill up
# Records for tapes and large disks (`tar -b 128`), at the end of a file alone: every size that is
# allowed here lets more files pass that end in the zeros of a download that was cut.
_OTHER_RECORDS = tuple(1 << n for n in range(16, 21))
_CHUNK = 1 << 16
_MOST_TOLD = 5  # archives of one file

_TEXTS = (*CAPTION_EXTENSIONS, "json")
# First bytes of pictures that say where they end -> their last bytes.
_PICTURE_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82", b"GIF8": b";"}
# A text in UTF-32 may end with three zeros, and other content with some by chance.
_FEW_ZEROS = 3


class Damaged(Exception):
    """A tar cannot be read to its end. `reason` is one of `records.DAMAGES`. last_is_cut: whether
    the member that came last is; None where nothing says."""

    def __init__(self, reason: str, detail: str, last_is_cut: bool | None = None) -> None:
        super().__init__(reason, detail, last_is_cut)
        self.reason, self.detail, self.last_is_cut = reason, detail, last_is_cut


@dataclass(frozen=True, slots=True)
class Zeros:
    """Zeros where a header could be, by offsets. archive: where the archive before them begins.
    first: of them. end: of what follows."""

    archive: int
    first: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.first

    def are_record(self, record: int = _RECORD) -> bool:
        """Whether they are a mark and fill a record, as tar writes them."""
        filled = (self.end - self.archive) % record == 0
        return filled and _MARK <= self.size < _MARK + record

    def are_mark(self) -> bool:
        """Whether they can be the end of an archive that others follow."""
        return self.size == _MARK or self.are_record()

    def are_end(self) -> bool:
        """Whether they can be the end of a file."""
        few = self.size < _MARK + _RECORD
        return few or any(self.are_record(record) for record in _OTHER_RECORDS)


class ZerosInTar:
    """The zeros that are met in one tar, and what they mean. notes: (reason, detail)."""

    def __init__(self, content: Content) -> None:
        self.notes: list[tuple[str, str]] = []
        self._content = content
        self._archive = 0
        # With a header directly behind them, the first of each kind: ends of archives if the file
        # ends so too, ends of none. Of others, which are ends, some offsets.
        self._mark_alone: Zeros | None = None
        self._no_end: Zeros | None = None
        self._others_begin: list[int] = []
        self._final: Zeros | None = None

    def pass_over(self, first: int) -> Zeros:
        """Go to what follows zeros that begin at `first`: a block, or the end of the file."""
        return Zeros(self._archive, first, self._content.skip_zeros())

    def are_followed(self, zeros: Zeros) -> bool:
        """Whether members follow the zeros that were passed over; raises Damaged where some are
        lost."""
        head = self._content.peek(_BLOCK)
        if not head:
            self._final = zeros
            if not zeros.are_end():
                detail = f"{zeros.size:,} zeros follow, as of a download that was cut off"
                self.notes.append(("zeros_after_end", detail))
            return False
        if is_header(head) or begins_header(head):
            self._add_joint(zeros)
            return True
        header = self._find_header()
        in_record = self._content.tell() % _RECORD == 0  # as a tar ends that wants a header
        if header is None and (zeros.are_record() or (zeros.are_mark() and not in_record)):
            detail = f"more follows the end mark at byte {zeros.first}"
            self.notes.append(("data_after_end", detail))
            return False
        where = "" if header is None else f"; the next header is at byte {header}"
        raise Damaged("damaged", f"zeros in place of a header at byte {zeros.first}{where}")

    def are_too_many(self, zeros: Zeros) -> bool:
        """Whether they are more than the end of an archive."""
        at_end = not self._content.peek(_BLOCK)
        return not (zeros.are_end() if at_end else zeros.are_mark())

    def check_joined(self) -> None:
        """At the end of the file: note that archives were joined, or raise Damaged where zeros with
        members behind them are the end of none. Some programs write the mark alone; then it is so
        at the end of the file as well, and does not fill a record there."""
        final = self._final
        marks_alone = final is not None and final.size == _MARK and final.end % _RECORD != 0
        zeros = self._no_end or (None if marks_alone else self._mark_alone)
        if zeros is not None:
            detail = f"{zeros.size:,} zeros in place of members at byte {zeros.first}"
            raise Damaged("damaged", detail, last_is_cut=False)
        if self._others_begin:
            places = ", ".join(map(str, self._others_begin))
            self.notes.append(("archives_joined", f"others begin at byte {places}"))

    def _add_joint(self, zeros: Zeros) -> None:
        self._archive = zeros.end
        if len(self._others_begin) < _MOST_TOLD:
            self._others_begin.append(zeros.end)
        if not zeros.are_mark():
            self._no_end = self._no_end or zeros
        elif not zeros.are_record():
            self._mark_alone = self._mark_alone or zeros

    def _find_header(self) -> int | None:
        """The offset of the next header; None where there is none up to the end of the file."""
        at = self._content.tell()
        while chunk := self._content.read(_CHUNK):
            for start in range(0, len(chunk), _BLOCK):
                digits = chunk[start + 148 : start + 156].strip(b" \0")  # the checksum
                if digits.isdigit() and is_header(chunk[start : start + _BLOCK]):
                    return at + start
            at += len(chunk)
        return None


class LastBytes:
    """Which members end in zeros that stand for bytes that are missing."""

    def __init__(self) -> None:
        self._first_with_zeros: dict[str, int] = {}  # extension -> the header of such a member

    def add(self, name: str, header: int, data: bytes) -> None:
        """To be told of every member that is read."""
        if data.endswith(b"\0"):
            self._first_with_zeros.setdefault(_extension(name), header)

    def missing(self, name: str, header: int, data: bytes, *, cut: bool) -> int:
        """How many zeros at the end of a member, directly before zeros of the tar, stand for what
        was never written. cut: whether those are too many. 0 where an earlier member of that
        extension ended in zeros too: then they are its content."""
        rest = data.rstrip(b"\0")
        zeros, extension = len(data) - len(rest), _extension(name)
        if not zeros or self._first_with_zeros.get(extension, header) != header:
            return 0
        text = extension in _TEXTS
        if zeros <= (0 if text and cut else _FEW_ZEROS):
            return 0
        end = next((end for begin, end in _PICTURE_ENDS.items() if data.startswith(begin)), None)
        if end is not None:
            return 0 if rest.endswith(end) else zeros
        return zeros if cut or text or len(rest) <= _FEW_ZEROS else 0


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()
