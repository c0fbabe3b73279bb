"""One sample while its members are read: which are kept, and what is noted or dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from chiasm.pipeline.known_formats import UNREAD_EXTENSIONS
from chiasm.pipeline.records import IMAGE, TEXT, Dropped, Note, Place, Sample, Source
from chiasm.pipeline.shards.captions import CAPTION_EXTENSIONS, Texts, read_texts
from chiasm.pipeline.shards.names import comparable, is_about_dataset
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

_RANKS = {extension: rank for rank, extension in enumerate(PICTURE_EXTENSIONS)}

# A sample that has only a picture or film that is not read is dropped, so that it is not taken for
# a caption without a picture. Other extensions (cls, npy, html) are ignored. Compared with the last
# part of an extension: seg.png is an extension of its own.
_VISUAL_EXTENSIONS = {*UNREAD_EXTENSIONS, *_RANKS}

_TEXT_EXTENSIONS = (*CAPTION_EXTENSIONS, "json")

_MAX_NOTES = 100  # of a kind of which a sample may have millions
_MAX_EXTENSIONS = 1000  # of a sample, beside those that are read


@dataclass(frozen=True)
class Wanted:
    """Which members are read, and how. keep: all of them, as they are, for a copy."""

    settings: ReadSettings
    modalities: Mapping[str, Sequence[str]]
    keep: bool = False

    @cached_property
    def other(self) -> dict[str, tuple[str, int]]:
        """Extension -> the modality beyond pictures and texts that it belongs to, and its rank."""
        return {
            extension: (modality, rank)
            for modality, extensions in self.modalities.items()
            if modality not in (IMAGE, TEXT)  # whose members are known
            for rank, extension in enumerate(extensions)
        }

    @cached_property
    def other_modalities(self) -> set[str]:
        return set(self.modalities) - {IMAGE, TEXT}


class SampleBuilder:
    """A sample while its members, those of one key, are read.

    compared: the key as it is compared with others. waits: for members behind those of other keys,
    with `waiting_bytes` of memory. size: bytes of its members without the `oversized`, those that
    are too large to read. kept: (name, bytes) of its members, where those are wanted."""

    def __init__(self, key: str, wanted: Wanted) -> None:
        self.key, self.compared = key, comparable(key)
        self.waits, self.waiting_bytes = False, 0
        self.wanted, self.settings = wanted, wanted.settings
        self.others: dict[str, tuple[int, Place, bytes | None]] = {}
        self.extensions: set[str] = set()
        self.picture: bytes | None = None
        self.place: Place | None = None
        self.rank = len(PICTURE_EXTENSIONS)
        self.texts: dict[str, bytes] = {}
        self.too_large: list[str] = []
        self.no_files: dict[str, str] = {}  # picture or text -> its first member that is no file
        self.notes: list[tuple[str, str]] = []  # reason, detail
        self.duplicates = 0
        self.size = self.oversized = 0
        self.kept: list[tuple[str, bytes]] = []
        self._reading = False
        self._parsed: Texts | None = None

    def is_next(self, name: str) -> bool:
        """Whether a member's name is surely one of this key, without splitting it."""
        end = len(self.key)
        return name.startswith(self.key) and name.startswith(".", end) and "/" not in name[end:]

    def is_complete(self, expected: set[str], others: Sequence[SampleBuilder] = ()) -> bool:
        """Whether a tar that is cut after the last member, which is of this group, probably has all
        of its sample: no member of it was cut, and it has the extensions of the sample before it,
        `expected` (the first sample of a shard: a picture and a caption). others: the groups of the
        same sample, where a folder is one."""
        parts = (self, *others)
        if expected:
            alike = expected <= {extension for part in parts for extension in part.extensions}
        else:
            alike = any(part.place for part in parts) and any(part.texts for part in parts)
        return alike and not self._reading

    @property
    def has_picture(self) -> bool:
        """Whether it has a member that is a picture, whether it can be read or not."""
        return self.place is not None or bool(self._unread())

    @property
    def has_others(self) -> bool:
        """Whether it has a text, or a member of another modality that the encoder takes."""
        return bool(self.texts or self.others)

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions that `embed` reads of the members so far."""
        return self._read().captions

    @property
    def is_about_dataset(self) -> bool:
        """Whether it is no sample, but a file about the data set: metadata.csv, classes.txt."""
        if self.place is not None or self.others or self.no_files or self.too_large:
            return False
        if self.has_picture:
            return False
        alone = self.texts and IMAGE not in self.wanted.modalities  # a sample that is a text
        return not alone and is_about_dataset(self.key, self.extensions)

    def is_whole(self) -> bool:
        """Whether it has a member of every modality that the encoder takes and, if captions are in
        a json field, json: then it waits for no more."""
        modalities = self.wanted.modalities
        if IMAGE in modalities and not self.has_picture:
            return False
        if not self.others.keys() >= self.wanted.other_modalities:
            return False
        if TEXT not in modalities:
            return True
        has_field = not self.settings.caption_field or "json" in self.extensions
        return has_field and bool(self._read().captions)

    def add(self, extension: str, member: Member) -> None:
        """Add a member; its bytes are read only where they are needed."""
        if member.kind:
            self._add_no_file(extension, f"{member.name}: {member.kind}")
            return
        self._reading = True  # until its bytes are read: a cut raises in between
        if member.size > self.settings.max_member_bytes:
            self.oversized += 1
        else:
            self.size += member.size
            if self.wanted.keep:
                self.kept.append((member.name, member.read()))
        if extension in self.extensions:
            self._note_duplicate(member.name)
        else:
            self._add_new(extension, member)
        self._reading = False

    def join(self, folder: str, others: Sequence[SampleBuilder]) -> SampleBuilder:
        """The sample of a folder: itself, which has the picture, and the others in it."""
        self.key, self.compared, self._parsed = folder, comparable(folder), None
        for other in others:
            for extension in sorted(other.extensions & self.extensions):
                self._note_duplicate(f"{other.key}.{extension}")
            self.texts = other.texts | self.texts
            self.others = other.others | self.others
            self.no_files = other.no_files | self.no_files
            self.extensions = self.extensions | other.extensions
            self.too_large += other.too_large
            self.notes += other.notes
            self.duplicates += other.duplicates
            self.oversized += other.oversized
            self.kept += other.kept
        return self

    def items(self) -> Iterator[Sample | Dropped | Note]:
        """The sample and its notes, or why it was dropped."""
        if self.is_about_dataset:
            yield Note(self.key, "no_sample", self._some_extensions())
            return
        dropped = self._unusable_picture()
        if dropped is None:
            texts, sources = self._read(), self._sources()
            if sources or (texts.captions and TEXT in self.wanted.modalities):
                self.notes += texts.notes
                missing = self._missing(sources, texts.captions)
                yield Sample(self.key, sources, texts.captions, texts.json, missing)
                for reason, detail in self.notes:
                    yield Note(self.key, reason, detail)
                if self.duplicates > _MAX_NOTES:
                    yield Note(self.key, "many_notes", str(self.duplicates - _MAX_NOTES))
                return
            self.too_large += texts.too_large
            dropped = self._unusable_text()
        yield Dropped(self.key, "read", *dropped)

    def _note_duplicate(self, name: str) -> None:
        """Of a kind of which a sample may have millions: the first are told, the rest counted."""
        self.duplicates += 1
        if self.duplicates <= _MAX_NOTES:
            self.notes.append(("duplicate_member", name))

    def _add_new(self, extension: str, member: Member) -> None:
        other = self.wanted.other
        rank = _RANKS.get(extension) if IMAGE in self.wanted.modalities else None
        text = extension in _TEXT_EXTENSIONS
        known = text or rank is not None or extension in other
        if known or len(self.extensions) < _MAX_EXTENSIONS:
            self.extensions.add(extension)
        if extension in other:
            self._add_other(*other[extension], member)
        elif rank is not None:
            self._add_picture(rank, member)
        elif text:
            self._add_text(extension, member)

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
        if extension in self.wanted.other:
            what = self.wanted.other[extension][0]
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
            self.texts[extension], self._parsed = member.read(), None

    def _unusable_text(self) -> tuple[str, str]:
        """(reason, detail) of a sample without a usable member."""
        if self.too_large:
            return "member_too_large", self.too_large[0]
        return ("no_file", next(iter(self.no_files.values()))) if self.no_files else ("empty", "")

    def _unusable_picture(self) -> tuple[str, str] | None:
        """(reason, detail) of a sample that has a picture but none that can be used."""
        if IMAGE not in self.wanted.modalities:
            return None
        if self.place is not None:
            if self.picture is None:
                return "member_too_large", f"{self.place.member}: {self.place.size} bytes"
            if len(self.extensions & _RANKS.keys()) > 1:
                self._note("several_pictures", f"{self.place.member} stands")
            return None
        if "picture" in self.no_files:
            return "no_file", self.no_files["picture"]
        others = sorted(self._unread())
        return ("extension", ", ".join(map(_named, others[:5]))) if others else None

    def _unread(self) -> list[str]:
        """Extensions of its pictures and films that are not read."""
        return [
            extension
            for extension in self.extensions - self.wanted.other.keys()
            if extension.rpartition(".")[2] in _VISUAL_EXTENSIONS
        ]

    def _read(self) -> Texts:
        if self._parsed is None:
            field, most = self.settings.caption_field, self.settings.max_text_bytes
            self._parsed = read_texts(self.texts, field, most)
        return self._parsed

    def _missing(self, sources: Mapping[str, Source], captions: tuple[str, ...]) -> dict[str, str]:
        """Modality -> why it is missing; each reason becomes a note as well."""
        reasons = {IMAGE: "no_picture", TEXT: "no_caption"}
        missing = {
            modality: reasons.get(modality, "no_member")
            for modality in self.wanted.modalities
            if modality not in sources and not (modality == TEXT and captions)
        }
        for modality, reason in missing.items():
            detail = {IMAGE: "", TEXT: self._some_extensions()}
            self._note(reason, detail.get(modality, modality))
        return missing

    def _some_extensions(self) -> str:
        """Of its members, for whoever looks for its captions."""
        return ", ".join(sorted(self.extensions)[:5])

    def _note(self, reason: str, detail: str) -> None:
        self.notes.append((reason, detail))

    def _note_large(self, detail: str) -> None:
        self._note("member_too_large", detail)
        self.too_large.append(detail)


def _named(extension: str) -> str:
    """An extension that is not read, with the format that it stands for."""
    form = UNREAD_EXTENSIONS.get(extension.rpartition(".")[2])
    return f"{extension} ({form})" if form else extension
