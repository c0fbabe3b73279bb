"""A shard in; its samples out in tar order, and beside them what is wrong, counted and not hidden.

Members are grouped as webdataset groups them: neighbours with one key are a sample. In memory is
only the sample in progress, of it only the picture that stands, `txt` and `json`; and the keys that
were seen, to know a late member. Every group is exactly one `Sample` or `Dropped`; the `Note`s of a
sample follow it. A tar that is cut ends with one `Dropped`, wherever the cut fell: the sample in
progress, or, where that looks whole, what must have come after it. The cost: a tar without an end
mark that lost nothing tells of a loss all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import SourceError, require_at_least
from pipeline.records import Dropped, Note, Place, Sample, Shard
from pipeline.shards import split_name
from pipeline.storage import shown
from pipeline.tars import Damaged, Member, Tar

# Read, and in this order when a sample has several: other names of the first, then what is rare.
# Which format it is, the bytes say.
PICTURES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ico", "avif"),
    *("jpe", "jfif", "jif", "pjpeg", "pjp", "apng", "mpo", "jp2", "j2k", "j2c", "jpf", "jpx"),
    *("ppm", "pgm", "pbm", "pnm", "pfm", "tga", "qoi", "dds", "psd", "pcx", "dcx", "sgi", "icns"),
    *("cur", "dib", "xbm", "xpm", "fli"),
)

# Pictures and films that are not read: a sample with nothing else to see is dropped, so that it is
# not taken for a caption without a picture. Other extensions (cls, npy, html) count for nothing.
_UNREAD = """
    arw avi cr2 cr3 dcm dng eps exr ff flif flv hdr heic heics heif heifs image img jls jpm jxl jxr
    m4v mkv mov mp4 mpeg mpg nef orf pam psb raf raw rw2 svg svgz wbmp webm wmf wmv xcf
"""
OTHER_PICTURES = frozenset(_UNREAD.split())

DROP_REASONS = {  # stage "read": every reason there is, and what it says
    "truncated": "the shard ends inside this sample",
    "damaged": "the shard cannot be read on from here",
    "extension": "its only picture has an extension that is not read",
    "member_too_large": "its picture, or all it has, is larger than read.max_member_bytes",
    "empty": "neither a picture nor a caption",
}
NOTE_REASONS = {
    "late_member": "a member of a sample that was closed already; the first group stands",
    "duplicate_member": "a second member with the same key and extension; the first stands",
    "several_pictures": "the one whose extension comes first in the list stands",
    "no_picture": "a caption without a picture",
    "no_caption": "a picture without a caption",
    "bad_text": "txt is no UTF-8; what could not be read is shown as U+FFFD",
    "bad_json": "json is no JSON object; the column is null",
    "member_too_large": "txt or json is larger than read.max_member_bytes, and was not read",
    "no_end_mark": "a compressed shard is cut behind the end of its tar; no member is lost",
    "data_after_end": "bytes after the end of the tar, not read",
}


@dataclass(frozen=True)
class ReadSettings:
    """How members become samples.

    caption_field: the json field with the caption, a string or a list of them; it comes before
    `txt`. Without one, `txt` comes first, then json's `caption`, then json's `captions`.
    max_member_bytes: larger members are not read into memory.
    """

    caption_field: str = ""
    max_member_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        require_at_least(1, read__max_member_bytes=self.max_member_bytes)


def read_samples(shard: Shard, settings: ReadSettings) -> Iterator[Sample | Dropped | Note]:
    """Stream a shard. A cut or damaged one ends with one `Dropped`, its detail says where and why.

    Raises SourceError for a shard that is no tar, is empty, or holds no sample at all."""
    seen: set[str] = set()
    group: _Group | None = None
    usual: set[str] = set()  # the extensions of the sample before the one in progress
    with Tar(shard.url) as tar:
        try:
            for member in tar:
                name = split_name(member.name)
                if name is None:
                    continue
                key, extension = name
                if group is not None and key != group.key:
                    yield from group.items()
                    group, usual = None, group.extensions
                if group is None:
                    if key in seen:
                        yield Note(key, "late_member", member.name)
                        continue
                    group = _Group(key, settings)
                    seen.add(key)
                group.add(extension, member)
        except Damaged as damage:
            if group is not None and group.is_whole(usual):
                yield from group.items()
                group = None
            yield Dropped(group.key if group else "", "read", damage.reason, damage.detail)
            return
        if group is not None:
            yield from group.items()
        if tar.odd_end is not None:
            yield Note("", *tar.odd_end)
    if not seen:
        raise SourceError(
            shown(shard.url),
            expected="a tar of samples",
            found="no member called key.extension",
            do="name members such as 0001.jpg and 0001.txt",
        )


class _Group:
    """The members of one key while they come in."""

    def __init__(self, key: str, settings: ReadSettings) -> None:
        self.key = key
        self.settings = settings
        self.extensions: set[str] = set()
        self.picture: bytes | None = None
        self.place: Place | None = None
        self.rank = len(PICTURES)
        self.texts: dict[str, bytes] = {}
        self.too_large: list[str] = []
        self.notes: list[Note] = []
        self._reading = False

    def is_whole(self, usual: set[str]) -> bool:
        """Whether a cut after the last member left this sample whole, as far as one can tell: no
        member of it was cut, and it has what the sample before it had (the first of a shard: a
        picture and a caption)."""
        alike = usual <= self.extensions if usual else self.place is not None and bool(self.texts)
        return alike and not self._reading

    def add(self, extension: str, member: Member) -> None:
        """Take a member in; the bytes of what is not needed are not read."""
        if extension in self.extensions:
            self._note("duplicate_member", member.name)
            return
        self.extensions.add(extension)
        self._reading = True  # until its bytes are there: a cut raises on the way
        if extension in PICTURES:
            self._add_picture(PICTURES.index(extension), member)
        elif extension in ("txt", "json"):
            if member.size > self.settings.max_member_bytes:
                self._note("member_too_large", self._size_of(member))
                self.too_large.append(self._size_of(member))
            else:
                self.texts[extension] = member.read()
        self._reading = False

    def items(self) -> Iterator[Sample | Dropped | Note]:
        """What has become of the sample: it and its notes, or its drop."""
        lost = self._lost_picture()
        if lost is None:
            table, told = self._json()
            captions = self._captions(table)
            if self.place is not None or captions:
                self._note_missing(captions)
                yield Sample(self.key, self.picture, self.place, captions, told)
                yield from self.notes
                return
            lost = ("member_too_large", self.too_large[0]) if self.too_large else ("empty", "")
        yield Dropped(self.key, "read", *lost)

    def _add_picture(self, rank: int, member: Member) -> None:
        if rank >= self.rank:
            return
        self.rank = rank
        self.place = Place(member.name, member.offset, member.size)
        self.picture = None  # the one of lower rank need not stay while this one is read
        if member.size <= self.settings.max_member_bytes:
            self.picture = member.read()

    def _lost_picture(self) -> tuple[str, str] | None:
        """(reason, detail) where there is a picture, but none that can be used."""
        if self.place is not None:
            if self.picture is None:
                return "member_too_large", f"{self.place.member}: {self.place.size} bytes"
            if sum(extension in PICTURES for extension in self.extensions) > 1:
                self._note("several_pictures", f"{self.place.member} stands")
            return None
        unread = OTHER_PICTURES.union(PICTURES)  # seg.png is an extension of its own
        others = sorted(e for e in self.extensions if e.rpartition(".")[2] in unread)
        return ("extension", ", ".join(others[:5])) if others else None

    def _json(self) -> tuple[dict[str, Any], str | None]:
        """The json member as a dict and as the text it is; ({}, None) for none or a bad one."""
        if "json" not in self.texts:
            return {}, None
        try:
            text = self.texts["json"].decode("utf-8-sig")
            table = json.loads(text)
        except (ValueError, RecursionError) as error:
            self._note("bad_json", str(error))
            return {}, None
        if not isinstance(table, dict):
            self._note("bad_json", f"a {type(table).__name__}, not an object")
            return {}, None
        return table, text

    def _captions(self, table: dict[str, Any]) -> tuple[str, ...]:
        if self.settings.caption_field:
            ways = (table.get(self.settings.caption_field), self._text())
        else:
            ways = (self._text(), table.get("caption"), table.get("captions"))
        return next(filter(None, map(captions_of, ways)), ())

    def _text(self) -> str | None:
        if "txt" not in self.texts:
            return None
        try:
            return self.texts["txt"].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._note("bad_text", str(error))
            return self.texts["txt"].decode("utf-8", "replace")

    def _note_missing(self, captions: tuple[str, ...]) -> None:
        if self.place is None:
            self._note("no_picture", "")
        if not captions:
            self._note("no_caption", "")

    def _note(self, reason: str, detail: str) -> None:
        self.notes.append(Note(self.key, reason, detail))

    def _size_of(self, member: Member) -> str:
        return f"{member.name}: {member.size} bytes"


def captions_of(value: object) -> tuple[str, ...]:
    """A string or a list of them -> the captions in it, stripped, without empty ones."""
    values = value if isinstance(value, list) else [value]
    # json may hold half a surrogate pair, which no column of text can.
    texts = (v.encode("utf-8", "replace").decode().strip() for v in values if isinstance(v, str))
    return tuple(text for text in texts if text)
