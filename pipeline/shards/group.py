"""One sample while its members come in: which of them are kept, and what is noted or lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chiasm.pipeline.errors import require_at_least
from chiasm.pipeline.records import IMAGE, TEXT, Dropped, Note, Place, Sample, Source
from chiasm.pipeline.shards.tar import Member

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
_NAMED = OTHER_PICTURES.union(PICTURES)  # by the last part: seg.png is an extension of its own

_TEXTS = ("txt", "json")

_MOST_NOTES = 100  # of a kind that one sample, or one shard, can have by the million
_MOST_EXTENSIONS = 1000  # of a sample, beside those that are read


@dataclass(frozen=True)
class ReadSettings:
    """How members become samples.

    caption_field: the json field with the caption, a string or a list of them; it comes before
    `txt`. Without one, `txt` comes first, then json's `caption`, then json's `captions`.
    max_member_bytes: larger members are not read into memory. max_text_bytes: nor is larger txt or
    json, of which 256 rows wait in memory for their row group, and whose parsing takes twenty times
    its size.
    """

    caption_field: str = ""
    max_member_bytes: int = 64 << 20
    max_text_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        require_at_least(
            1,
            read__max_member_bytes=self.max_member_bytes,
            read__max_text_bytes=self.max_text_bytes,
        )


class CappedNotes:
    """Lets so many notes of one kind pass, and counts the others: an account of a million late
    members is of use to nobody."""

    def __init__(self) -> None:
        self._passed = self._left = 0

    def take(self, note: Note) -> Iterator[Note]:
        self._passed += 1
        if self._passed <= _MOST_NOTES:
            yield note
        else:
            self._left += 1

    def rest(self, key: str = "") -> Iterator[Note]:
        """One note that says how many were left out, if any was."""
        if self._left:
            yield Note(key, "many_notes", str(self._left))


class Group:
    """The members of one key while they come in."""

    def __init__(
        self, key: str, settings: ReadSettings, modalities: Mapping[str, Sequence[str]]
    ) -> None:
        self.key = key
        self.settings = settings
        self.modalities = modalities
        # Extension -> the other modality that it belongs to, and its rank there.
        self.other = {
            extension: (modality, rank)
            for modality, extensions in modalities.items()
            for rank, extension in enumerate(extensions)
        }
        self.others: dict[str, tuple[int, Place, bytes | None]] = {}
        self.extensions: set[str] = set()
        self.picture: bytes | None = None
        self.place: Place | None = None
        self.rank = len(PICTURES)
        self.texts: dict[str, bytes] = {}
        self.too_large: list[str] = []
        self.no_files: dict[str, str] = {}  # picture or text -> the first that is a link, ...
        self.notes: list[Note] = []
        self._duplicates = CappedNotes()
        self._reading = False

    def is_whole(self, usual: set[str]) -> bool:
        """Whether a cut after the last member left this sample whole, as far as one can tell: no
        member of it was cut, and it has what the sample before it had (the first of a shard: a
        picture and a caption)."""
        alike = usual <= self.extensions if usual else self.place is not None and bool(self.texts)
        return alike and not self._reading

    def add(self, extension: str, member: Member) -> None:
        """Take a member in; the bytes of what is not needed are not read."""
        if member.kind:
            self._add_no_file(extension, f"{member.name}: {member.kind}")
            return
        if extension in self.extensions:
            note = Note(self.key, "duplicate_member", member.name)
            self.notes.extend(self._duplicates.take(note))
            return
        picture = extension in PICTURES and IMAGE in self.modalities
        read = picture or extension in _TEXTS or extension in self.other
        if read or len(self.extensions) < _MOST_EXTENSIONS:
            self.extensions.add(extension)
        self._reading = True  # until its bytes are there: a cut raises on the way
        if extension in self.other:
            self._add_other(*self.other[extension], member)
        elif picture:
            self._add_picture(PICTURES.index(extension), member)
        elif read:
            self._add_text(extension, member)
        self._reading = False

    def items(self) -> Iterator[Sample | Dropped | Note]:
        """What has become of the sample: it and its notes, or its drop."""
        lost = self._lost_picture()
        if lost is None:
            table, told = self._json()
            captions = self._captions(table)
            sources = self._sources()
            if sources or (captions and TEXT in self.modalities):
                missing = self._missing(sources, captions)
                yield Sample(self.key, sources, captions, told, missing)
                yield from self.notes
                yield from self._duplicates.rest(self.key)
                return
            lost = self._lost_text()
        yield Dropped(self.key, "read", *lost)

    def _add_picture(self, rank: int, member: Member) -> None:
        if rank >= self.rank:
            return
        self.rank = rank
        self.place = Place(member.name, member.offset, member.size)
        self.picture = None  # the one of lower rank need not stay while this one is read
        if member.size <= self.settings.max_member_bytes:
            self.picture = member.read()

    def _add_other(self, modality: str, rank: int, member: Member) -> None:
        if modality in self.others and self.others[modality][0] < rank:
            return
        small = member.size <= self.settings.max_member_bytes
        place = Place(member.name, member.offset, member.size)
        self.others[modality] = (rank, place, member.read() if small else None)
        if not small:
            self._note_large(f"{member.name}: {member.size} bytes")

    def _sources(self) -> dict[str, Source]:
        found: dict[str, Source] = {}
        if self.place is not None and self.picture is not None:
            found[IMAGE] = Source(self.picture, self.place)
        for modality, (_, place, data) in self.others.items():
            if data is not None:
                found[modality] = Source(data, place)
        return found

    def _add_no_file(self, extension: str, detail: str) -> None:
        picture = extension.rpartition(".")[2] in _NAMED
        what = "picture" if picture else "text" if extension in _TEXTS else None
        if what is not None and what not in self.no_files:
            self.no_files[what] = detail
            self._note("no_file", detail)

    def _add_text(self, extension: str, member: Member) -> None:
        most = min(self.settings.max_text_bytes, self.settings.max_member_bytes)
        if member.size > most:
            self._note_large(f"{member.name}: {member.size} bytes")
        else:
            self.texts[extension] = member.read()

    def _lost_text(self) -> tuple[str, str]:
        """(reason, detail) where there is neither a picture nor a caption."""
        if self.too_large:
            return "member_too_large", self.too_large[0]
        return ("no_file", self.no_files["text"]) if self.no_files else ("empty", "")

    def _lost_picture(self) -> tuple[str, str] | None:
        """(reason, detail) where there is a picture, but none that can be used."""
        if IMAGE not in self.modalities:
            return None
        if self.place is not None:
            if self.picture is None:
                return "member_too_large", f"{self.place.member}: {self.place.size} bytes"
            if sum(extension in PICTURES for extension in self.extensions) > 1:
                self._note("several_pictures", f"{self.place.member} stands")
            return None
        if "picture" in self.no_files:
            return "no_file", self.no_files["picture"]
        others = sorted(e for e in self.extensions if e.rpartition(".")[2] in _NAMED)
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
            text = self.texts["txt"].decode("utf-8", "replace")
        size = len(text.encode())  # a byte that could not be read has become three
        if size <= self.settings.max_text_bytes:
            return text
        self._note_large(f"txt: {size} bytes")
        return None

    def _missing(self, sources: Mapping[str, Source], captions: tuple[str, ...]) -> dict[str, str]:
        """By modality why it is not there; each is a note as well."""
        reasons = {IMAGE: "no_picture", TEXT: "no_caption"}
        missing = {
            modality: reasons.get(modality, "no_member")
            for modality in self.modalities
            if modality not in sources and not (modality == TEXT and captions)
        }
        for modality, reason in missing.items():
            self._note(reason, "" if modality in reasons else modality)
        return missing

    def _note(self, reason: str, detail: str) -> None:
        self.notes.append(Note(self.key, reason, detail))

    def _note_large(self, detail: str) -> None:
        self._note("member_too_large", detail)
        self.too_large.append(detail)


def captions_of(value: object) -> tuple[str, ...]:
    """A string or a list of them -> the captions in it, stripped, without empty ones."""
    values = value if isinstance(value, list) else [value]
    # json may hold half a surrogate pair, which no column of text can.
    texts = (v.encode("utf-8", "replace").decode().strip() for v in values if isinstance(v, str))
    return tuple(text for text in texts if text)
