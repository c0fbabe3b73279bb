"""A query as a receipt keeps it: plain data, with its pictures."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, FiniteFloat

from chiasm.index.plan import Count
from chiasm.index.queries import MemberSource, PictureBytes, PictureSource, Query, Term
from chiasm.index.query import encoded_file, encoded_picture
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.records import TEXT
from chiasm.pipeline.storage import canonical_url, display_name, is_remote

# A picture of at most so many bytes is kept itself; a larger one is read again from its place.
EMBEDDED_BYTES = 1 << 20

Part = TypeVar("Part", Query, Term)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]


@dataclass(frozen=True)
class StoredPicture:
    """A picture, or a file of another modality. name: as answers call it. place: a path or URL to
    read it from again, "" where there is none. data: the encoded file in base64, "" where it has
    more than EMBEDDED_BYTES."""

    name: str
    place: str
    size: Count
    sha256: Sha256
    data: str = ""

    @classmethod
    def of(cls, picture: PictureBytes) -> StoredPicture:
        data = bytes(picture)
        embedded = base64.b64encode(data).decode() if len(data) <= EMBEDDED_BYTES else ""
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(picture.name, picture.place, len(data), sha256, embedded)

    def load(self, what: str) -> PictureBytes:
        """The file, from the receipt or from its place. ValueError for damaged base64, and with
        a line for a person, which says what it is, where it is not what it was."""
        name = f"{what} {self.name}"
        if self.data or not self.size:
            data = base64.b64decode(self.data, validate=True)
        elif not self.place:
            raise ValueError(f"{name}: too large for a receipt, and was given without a place")
        else:
            try:
                data = encoded_file(self.place, what)
            except ChiasmError as error:
                raise ValueError(f"{name}: it cannot be read any more ({error})") from error
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise ValueError(f"{name}: sha256 was {self.sha256[:12]}, is {found[:12]}")
        return PictureBytes(data, self.name, self.place)

    def absent(self) -> PictureBytes:
        """What stands for a picture that is not there: it has the name and no bytes."""
        return PictureBytes(b"", self.name, self.place)


@dataclass(frozen=True)
class StoredTerm:
    text: str | None
    picture: StoredPicture | None
    weight: FiniteFloat
    members: dict[str, StoredPicture] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredQuery:
    """The fields of a `Query`. One of neither text, picture, members nor terms was given as a
    vector. nprobe: as it was searched, also where the query wants nothing; None where that is
    exact. members: which receipts of earlier versions lack."""

    text: str | None
    picture: StoredPicture | None
    terms: tuple[StoredTerm, ...]
    column: str
    k: Count
    nprobe: Count | None
    rerank: tuple[str, ...]
    hybrid: bool
    calibrated: bool
    dedup: FiniteFloat | None
    diversity: FiniteFloat
    where: str | None
    members: dict[str, StoredPicture] = field(default_factory=dict)

    @classmethod
    def of(cls, query: Query, nprobe: int) -> StoredQuery:
        """Of a query whose pictures are `PictureBytes`. nprobe: lists that it scanned."""
        return cls(
            text=query.text,
            picture=_stored(query.image),
            terms=tuple(
                StoredTerm(
                    term.text, _stored(term.image), float(term.weight), _stored_all(term.members)
                )
                for term in query.terms
            ),
            column=query.column,
            k=int(query.k),
            nprobe=nprobe or None,
            rerank=tuple(map(str, query.stages)),
            hybrid=query.hybrid,
            calibrated=query.calibrated,
            dedup=None if query.dedup is None else float(query.dedup),
            diversity=float(query.diversity),
            where=query.where,
            members=_stored_all(query.members),
        )

    @property
    def pictures(self) -> list[tuple[StoredPicture, str]]:
        """Its pictures and members, and those of its terms, each with what it is, for errors."""
        found = [(self.picture, "picture"), *_with_names(self.members)]
        for term in self.terms:
            found += [(term.picture, "picture"), *_with_names(term.members)]
        return [(picture, what) for picture, what in found if picture is not None]

    def query(self, pictures: Mapping[StoredPicture, PictureBytes], vector: object = None) -> Query:
        """The query. pictures: those that could be loaded. vector: of one that was given
        as a vector. Raises UsageError for values, TypeError for types that no query has."""

        def loaded(picture: StoredPicture | None) -> PictureBytes | None:
            return None if picture is None else pictures.get(picture, picture.absent())

        def loaded_all(members: Mapping[str, StoredPicture]) -> dict[str, MemberSource]:
            return {name: pictures.get(one, one.absent()) for name, one in members.items()}

        terms = [
            Term(one.text, loaded(one.picture), one.weight, loaded_all(one.members))
            for one in self.terms
        ]
        given = not terms and not self.pictures and not (self.text or "").strip()
        return Query(
            self.text,
            loaded(self.picture),
            vector if given else None,  # type: ignore[arg-type]  Query checks it
            terms=terms,
            column=self.column,
            k=self.k,
            nprobe=self.nprobe,
            rerank=self.rerank,
            hybrid=self.hybrid,
            calibrated=self.calibrated,
            dedup=self.dedup,
            diversity=self.diversity,
            where=self.where,
            members=loaded_all(self.members),
        )


@dataclass
class PictureReader:
    """Reads the pictures and members of queries, each path or URL once."""

    _read: dict[str, PictureBytes] = field(default_factory=dict)

    def with_pictures(self, query: Query) -> Query:
        """The query with its pictures and members as `PictureBytes`; raises as `encoded_picture`
        does."""
        if all(term.modality == TEXT for term in query.inputs):
            return query
        return replace(self._read_of(query), terms=list(map(self._read_of, query.terms)))

    def _read_of(self, part: Part) -> Part:
        image = None if part.image is None else self._bytes(part.image)
        members = {name: self._bytes(source, name) for name, source in part.members.items()}
        return replace(part, image=image, members=members)

    def _bytes(self, source: PictureSource, what: str = "picture") -> PictureBytes:
        if isinstance(source, PictureBytes):
            return source
        if not isinstance(source, str | Path):
            name = "(given as bytes)" if isinstance(source, bytes) else "(given as pixels)"
            return PictureBytes(encoded_picture(source), name)
        key = str(source)
        if key not in self._read:
            data = encoded_file(source, what)
            self._read[key] = PictureBytes(data, *_name_and_place(key))
        return self._read[key]


def _name_and_place(source: str) -> tuple[str, str]:
    """A receipt is a file that others read: it has no signature of a signed URL."""
    if "://" not in source:
        return source, os.path.abspath(os.path.expanduser(source))
    url = canonical_url(source, allow_query=True)
    name = display_name(url) if is_remote(url) else source
    return name, name


def _with_names(members: Mapping[str, StoredPicture]) -> list[tuple[StoredPicture | None, str]]:
    return [(one, name) for name, one in members.items()]


def _stored_all(members: Mapping[str, MemberSource]) -> dict[str, StoredPicture]:
    found = {name: _stored(source) for name, source in members.items()}
    return {name: one for name, one in found.items() if one is not None}


def _stored(picture: PictureSource | None) -> StoredPicture | None:
    if picture is None:
        return None
    assert isinstance(picture, PictureBytes), "PictureReader has read it"
    return StoredPicture.of(picture)
