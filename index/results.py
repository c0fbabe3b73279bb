"""Results and answers: plain data.

A hit is a position of the live generation with its scores (hits.py). A result is a hit with its row
of the catalog; it can read its own picture, and its members of other modalities, from the shard.
`Answer.as_json` is the shape that other programs rely on (docs/formats.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, overload

from PIL import Image, ImageOps

from chiasm.index.hits import Hit, Trace
from chiasm.index.notebook import Tile, gallery
from chiasm.index.queries import Query, check_rate
from chiasm.pipeline.errors import ChiasmError, SourceError, Undecodable, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.records import IMAGE, TEXT, Origin, Place
from chiasm.pipeline.shards import read_checked

READERS = 8  # pictures read at once: reads of an object store mostly wait
REPR_RESULTS = 10  # results that repr(answer) lists
HTML_RESULTS = 20  # results that a notebook shows, with their pictures
HTML_SIDE = 160  # of a notebook's thumbnails, in pixels
MAX_TITLE = 200  # characters of a query or a caption in a repr
MIN_LOAD_SECONDS = 0.05  # loading that took less is not mentioned


@dataclass(frozen=True, slots=True)
class CatalogRow:
    """A row of the catalog. `id` is `row_id`'s. `key` is unique within its shard only. `caption` is
    the first of `captions`, None without any. `meta` is the sample's json in the collection's
    types, absent fields left out. `width` and `height` are in pixels, EXIF orientation applied.
    `url` is the shard's, `place` the picture's bytes in it, `sha256` their digest; `place` and
    `sha256` are None for a row without a picture. `members`: of the other modalities that the row
    was made from, where each one's bytes are and their digest. `placed`: the other modalities whose
    members the index places, in whatever row.
    """

    id: str
    key: str
    shard: str
    url: str
    caption: str | None
    captions: tuple[str, ...]
    meta: dict[str, Any]
    width: int | None
    height: int | None
    place: Place | None
    sha256: str | None
    members: Mapping[str, Origin] = field(default_factory=dict)
    placed: frozenset[str] = frozenset()


def row_id(shard_id: str, row: int, edition: str) -> str:
    """The permanent name of a row: `<shard id>/<row>@<edition>`."""
    return f"{shard_id}/{row}@{edition}"


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """A hit with its row. `rank` counts from 1. The fields of both are attributes. `duplicates`:
    the ids of the near duplicates that are folded under it, best first, where the query has
    `dedup`."""

    rank: int
    hit: Hit
    row: CatalogRow
    duplicates: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        return self.hit.score

    @property
    def scores(self) -> dict[str, float]:
        return self.hit.scores

    @property
    def scored_by(self) -> str:
        """The stage that gave `score`: `search`, or the last stage of reranking that scored it."""
        return self.hit.scored_by

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def key(self) -> str:
        return self.row.key

    @property
    def shard(self) -> str:
        return self.row.shard

    @property
    def url(self) -> str:
        return self.row.url

    @property
    def caption(self) -> str | None:
        return self.row.caption

    @property
    def captions(self) -> tuple[str, ...]:
        return self.row.captions

    @property
    def meta(self) -> dict[str, Any]:
        return self.row.meta

    @property
    def width(self) -> int | None:
        return self.row.width

    @property
    def height(self) -> int | None:
        return self.row.height

    @property
    def place(self) -> Place | None:
        return self.row.place

    @property
    def sha256(self) -> str | None:
        return self.row.sha256

    @property
    def members(self) -> Mapping[str, Origin]:
        return self.row.members

    def picture(self) -> bytes:
        """The encoded picture, read from its shard and compared with what was embedded.

        Raises SourceError for a row without one, a shard that is gone, or one that has changed.
        """
        if self.place is None:
            raise SourceError(self.id, expected="a picture", found="a row without a picture")
        return read_checked(self.url, self.place, self.sha256)

    def data(self, modality: str) -> bytes:
        """The bytes of the member that a modality was made from: `image`, or one of `members`. Read
        and compared as by `picture`, which is `data("image")`; raises SourceError as it does.
        """
        if modality == IMAGE:
            return self.picture()
        member = self.members.get(modality)
        if member is None:
            raise self._lacks(modality)
        return read_checked(self.url, member.place, member.sha256)

    def _lacks(self, modality: str) -> SourceError:
        """The error for a modality other than pictures of which the row has no member."""
        known = [IMAGE, *self.members] if self.place else list(self.members)
        found, do = f"only {', '.join(known)}" if known else "none", ""
        if modality == TEXT:
            do = "its texts are in captions"
        elif modality in self.row.placed:
            found = "a row without it"
        elif not self.row.placed:  # nor has an index of pictures and texts alone any
            found = "none in the index"
            do = "an index of an earlier version lacks them: run chiasm index build"
        return SourceError(self.id, expected=f"a member of {modality}", found=found, do=do)

    def thumbnail(self, side: int) -> Image.Image | str:
        """The picture as RGB of at most `side` x `side` pixels, or why there is none to show."""
        if self.place is None:
            return "a row without a picture"
        try:
            return shrink(self.picture(), side)
        except ChiasmError as error:
            return str(error)
        except Undecodable as error:
            return f"{self.place.member}: {error.reason}"

    def as_json(self) -> dict[str, Any]:
        """rank, id, key, shard, score, scores, caption, meta; then where the picture's bytes are:
        the shard's url, and member, offset and size in it, None for a row without a picture. A row
        with other modalities has `members`: member, offset and size of each."""
        names = ("rank", "id", "key", "shard", "score", "scores", "caption", "meta", "url")
        result = {**{name: getattr(self, name) for name in names}, **_place_as_json(self.place)}
        if self.members:
            result["members"] = {
                modality: _place_as_json(origin.place) for modality, origin in self.members.items()
            }
        if self.duplicates:
            result["duplicates"] = list(self.duplicates)
        return result

    def __repr__(self) -> str:
        return self.summary(f"{self.score:.3f}")

    def summary(self, score_label: str) -> str:
        """The result in one line, with the score as given."""
        caption = _shorten(self.caption or self.key, MAX_TITLE)
        return f"<Result {self.rank}: {score_label} {caption!r} {self.id}{self.duplicates_label()}>"

    def duplicates_label(self) -> str:
        """` + 3 near duplicates`, "" without."""
        count = len(self.duplicates)
        return f" + {count} near duplicate{'s' if count > 1 else ''}" if count else ""


@dataclass(frozen=True, slots=True, repr=False)
class Answer(Sequence[Result]):
    """The results of one query, best first. `seconds` by stage; of a batch, each answer's share.

    p_absent: of a calibrated query, how likely one that has nothing here scores as high: in (0, 1].
    trace: what it was made of.
    """

    query: Query
    results: tuple[Result, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    p_absent: float | None = None
    trace: Trace | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, at: int) -> Result: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Result, ...]: ...
    def __getitem__(self, at: int | slice) -> Result | tuple[Result, ...]:
        return self.results[at]

    def nothing_matches(self, false_alarms: float = 0.05) -> bool:
        """Whether to say that nothing here matches. Of queries that name what no row has, at most
        the share `false_alarms` is answered False; what that holds for is said in
        index/query/calibrate.py. UsageError for a query that was not calibrated, or a rate that is
        none."""
        check_rate(false_alarms)
        if self.p_absent is None:
            raise UsageError(
                "nothing_matches",
                expected="an answer to a calibrated query",
                found="another",
                do='search with calibrated=True, such as Query("a boat", calibrated=True)',
            )
        return self.p_absent > false_alarms

    def is_reranked(self, result: Result) -> bool:
        """Whether the query's last stage of reranking scored this result; False without stages.
        Results that it did not score follow, with an earlier stage's score, on another scale."""
        stages = self.query.stages  # by number: an earlier one may have the name of the last
        return bool(stages) and result.hit.rerank_step == len(stages) - 1

    def score_label(self, result: Result) -> str:
        """The score for people; of a result that the last stage did not score also whose score it
        is: `0.214 (search)`."""
        other = bool(self.query.stages) and not self.is_reranked(result)
        return f"{result.score:.3f}" + (f" ({result.scored_by})" if other else "")

    def time_label(self) -> str:
        """`12 ms`, and apart from it what loading encoder and index took: `12 ms, loading 2.1
        s`."""
        load = self.seconds.get("load", 0.0)
        label = f"{1000 * (sum(self.seconds.values()) - load):.0f} ms"
        return label if load < MIN_LOAD_SECONDS else f"{label}, loading {load:.1f} s"

    def as_json(self) -> dict[str, Any]:
        """{"query": {...}, "results": [{"rank", "id", "key", ...}], "seconds": {stage: s}}; each
        result also says whether it was `reranked`. Of a calibrated query also `p_absent`."""
        return {
            "query": self.query.as_json(),
            **({} if self.p_absent is None else {"p_absent": round(self.p_absent, 6)}),
            "results": [
                {**result.as_json(), "reranked": self.is_reranked(result)} for result in self
            ],
            "seconds": {stage: round(spent, 6) for stage, spent in self.seconds.items()},
        }

    def __repr__(self) -> str:
        lines = [f"<Answer to {self._title()}>"]
        lines += [
            f"  {result.summary(self.score_label(result))}"
            for result in self.results[:REPR_RESULTS]
        ]
        if len(self) > REPR_RESULTS:
            lines.append(f"  ... and {len(self) - REPR_RESULTS} more")
        return "\n".join(lines)

    def _title(self) -> str:
        query = repr(_shorten(str(self.query), MAX_TITLE))[1:-1]  # control characters escaped
        return f"{query} in {self.query.column}: {len(self)} results, {self.time_label()}"

    def _repr_html_(self) -> str:
        """What a notebook shows: thumbnails, scores and captions of the first HTML_RESULTS."""
        first = self.results[:HTML_RESULTS]
        with ThreadPoolExecutor(READERS) as readers:
            pictures = list(readers.map(lambda result: result.thumbnail(HTML_SIDE), first))
        tiles = [
            Tile(
                picture,
                f"{result.rank}: {self.score_label(result)}",
                result.caption or "",
                result.id,
            )
            for result, picture in zip(first, pictures, strict=True)
        ]
        return gallery(self._title(), tiles, HTML_SIDE, left_out=len(self) - len(first))


def _place_as_json(place: Place | None) -> dict[str, Any]:
    names = ("member", "offset", "size")
    return {name: getattr(place, name) if place else None for name in names}


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def shrink(data: bytes, side: int) -> Image.Image:
    """An encoded picture as RGB of at most `side` x `side` pixels; raises Undecodable."""
    image = decode(data, DecodeSettings(scaled=True), side).image
    return ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)
