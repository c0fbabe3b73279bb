"""One sample while its members are read: which are kept, and what is noted or dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chiasm.pipeline.records import IMAGE, TEXT, Dropped, Note, Place, Sample, Source
from chiasm.pipeline.shards.captions import first_captions
from chiasm.pipeline.shards.read_settings import ReadSettings
from chiasm.pipeline.shards.tar import Member

# Extensions that are read as pictures, in order of preference when a sample has several: common
# formats, other names of these, rare formats. The format itself is detected by content.
PICTURE_EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ico", "avif"),
    *("jpe", "jfif", "jif", "pjpeg", "pjp", "apng", "mpo", "jp2", "j2k", "j2c", "jpf", "jpx"),
    *("ppm", "pgm", "pbm", "pnm", "pfm", "tga", "qoi", "dds", "psd", "pcx", "dcx", "sgi", "icns"),
    *("cur", "dib", "xbm", "xpm", "fli", "heic", "heif", "hif"),
)

# Pictures and films that are not read: a sample without another picture is dropped, so that it is
# not taken for a caption without a picture. Other extensions (cls, npy, html) are ignored.
_UNREAD = """
    arw avi cr2 cr3 dcm dng eps exr ff flif flv hdr heics heifs image img jls jpm jxl jxr
    m4v mkv mov mp4 mpeg mpg nef orf pam psb raf raw rw2 svg svgz wbmp webm wmf wmv xcf
"""
UNREAD_EXTENSIONS = frozenset(_UNREAD.split())
# Compared with the last part of an extension: seg.png is an extension of its own.
_VISUAL_EXTENSIONS = UNREAD_EXTENSIONS.union(PICTURE_EXTENSIONS)

_TEXT_EXTENSIONS = ("txt", "json")

_MAX_NOTES = 100  # of a kind of which a sample or a shard may have millions
_MAX_EXTENSIONS = 1000  # of a sample, beside those that are read


class CappedNotes:
    """Passes on the first notes of a kind and only counts the rest: nobody reads a million."""

    def __init__(self) -> None:
        self._passed = self._omitted = 0

    def take(self, note: Note) -> Iterator[Note]:
        """The note itself while there are few, then nothing."""
        self._passed += 1
        if self._passed <= _MAX_NOTES:
            yield note
        else:
            self._omitted += 1

    def rest(self, key: str = "") -> Iterator[Note]:
        """One note with the number of omitted ones, if there are any."""
        if self._omitted:
            yield Note(key, "many_notes", str(self._omitted))


class SampleBuilder:
    """A sample while its members, those of one key, are read."""

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
            if modality not in (IMAGE, TEXT)  # whose members are known
            for rank, extension in enumerate(extensions)
        }
        self.others: dict[str, tuple[int, Place, bytes | None]] = {}
        self.extensions: set[str] = set()
        self.picture: bytes | None = None
        self.place: Place | None = None
        self.rank = len(PICTURE_EXTENSIONS)
        self.texts: dict[str, bytes] = {}
        self.too_large: list[str] = []
        self.no_files: dict[str, str] = {}  # picture or text -> its first member that is no file
        self.notes: list[Note] = []
        self._duplicates = CappedNotes()
        self._reading = False

    def is_complete(self, expected: set[str]) -> bool:
        """Whether a tar that is cut after the last member probably has all of this sample: no
        member of it was cut, and it has the extensions of the sample before it, `expected` (the
        first sample of a shard: a picture and a caption)."""
        has_both = self.place is not None and bool(self.texts)
        alike = expected <= self.extensions if expected else has_both
        return alike and not self._reading

    def add(self, extension: str, member: Member) -> None:
        """Add a member; its bytes are read only where they are needed."""
        if member.kind:
            self._add_no_file(extension, f"{member.name}: {member.kind}")
            return
        if extension in self.extensions:
            note = Note(self.key, "duplicate_member", member.name)
            self.notes.extend(self._duplicates.take(note))
            return
        picture = extension in PICTURE_EXTENSIONS and IMAGE in self.modalities
        read = picture or extension in _TEXT_EXTENSIONS or extension in self.other
        if read or len(self.extensions) < _MAX_EXTENSIONS:
            self.extensions.add(extension)
        self._reading = True  # until its bytes are read: a cut raises in between
        if extension in self.other:
            self._add_other(*self.other[extension], member)
        elif picture:
            self._add_picture(PICTURE_EXTENSIONS.index(extension), member)
        elif read:
            self._add_text(extension, member)
        self._reading = False

    def items(self) -> Iterator[Sample | Dropped | Note]:
        """The sample and its notes, or why it was dropped."""
        dropped = self._unusable_picture()
        if dropped is None:
            table, json_text = self._json()
            captions = self._captions(table)
            sources = self._sources()
            if sources or (captions and TEXT in self.modalities):
                missing = self._missing(sources, captions)
                yield Sample(self.key, sources, captions, json_text, missing)
                yield from self.notes
                yield from self._duplicates.rest(self.key)
                return
            dropped = self._unusable_text()
        yield Dropped(self.key, "read", *dropped)

    def _add_picture(self, rank: int, member: Member) -> None:
        if rank >= self.rank:
            return
        self.rank = rank
        self.place = Place(member.name, member.offset, member.size)
        self.picture = None  # frees the picture of lower rank before this one is read
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
        picture = extension.rpartition(".")[2] in _VISUAL_EXTENSIONS
        if extension in self.other:
            what = self.other[extension][0]
        else:
            what = "picture" if picture else "text" if extension in _TEXT_EXTENSIONS else None
        if what is not None and what not in self.no_files:
            self.no_files[what] = detail
            self._note("no_file", detail)

    def _add_text(self, extension: str, member: Member) -> None:
        most = min(self.settings.max_text_bytes, self.settings.max_member_bytes)
        if member.size > most:
            self._note_large(f"{member.name}: {member.size} bytes")
        else:
            self.texts[extension] = member.read()

    def _unusable_text(self) -> tuple[str, str]:
        """(reason, detail) of a sample without a usable member."""
        if self.too_large:
            return "member_too_large", self.too_large[0]
        return ("no_file", next(iter(self.no_files.values()))) if self.no_files else ("empty", "")

    def _unusable_picture(self) -> tuple[str, str] | None:
        """(reason, detail) of a sample that has a picture but none that can be used."""
        if IMAGE not in self.modalities:
            return None
        if self.place is not None:
            if self.picture is None:
                return "member_too_large", f"{self.place.member}: {self.place.size} bytes"
            if sum(extension in PICTURE_EXTENSIONS for extension in self.extensions) > 1:
                self._note("several_pictures", f"{self.place.member} stands")
            return None
        if "picture" in self.no_files:
            return "no_file", self.no_files["picture"]
        others = sorted(
            extension
            for extension in self.extensions - self.other.keys()
            if extension.rpartition(".")[2] in _VISUAL_EXTENSIONS
        )
        return ("extension", ", ".join(others[:5])) if others else None

    def _json(self) -> tuple[dict[str, Any], str | None]:
        """The json member, parsed and as text; ({}, None) for none or an invalid one."""
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
        return first_captions(self._text(), table, self.settings.caption_field)

    def _text(self) -> str | None:
        if "txt" not in self.texts:
            return None
        try:
            return self.texts["txt"].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._note("bad_text", str(error))
            text = self.texts["txt"].decode("utf-8", "replace")
        size = len(text.encode())  # an invalid byte has become three
        if size <= self.settings.max_text_bytes:
            return text
        self._note_large(f"txt: {size} bytes")
        return None

    def _missing(self, sources: Mapping[str, Source], captions: tuple[str, ...]) -> dict[str, str]:
        """Modality -> why it is missing; each reason becomes a note as well."""
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
