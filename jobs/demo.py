"""`chiasm demo`: the whole way on a world of its own, from facts to measured answers.

In comes a seed; out come shards of picture-book scenes, a collection, its index, a few searches
with their hits, the recall of all captions and pictures, a contact sheet, and answers to
questions about the pictures found. What is right is decided from the facts in each hit's own json.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.index import Answer, Query, Searcher, build_index, open_collection, row_id
from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.query import pixels_of
from chiasm.index.sheet import write_sheet
from chiasm.jobs.config import DEFAULT_ENCODER, compose
from chiasm.jobs.console import Progress
from chiasm.jobs.embed_shards import EmbedRequest, embed_shards
from chiasm.pipeline.collection import embeddings, vectors_of
from chiasm.pipeline.embed_summary import summary_error
from chiasm.pipeline.encoders import (
    Answerer,
    Fault,
    GenerateSettings,
    Reply,
    Request,
    answer_batch,
    load_answerer,
)
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.metrics import KS, recalls, right_at
from chiasm.pipeline.scenes.claims import Claims, holds, holds_matrix
from chiasm.pipeline.scenes.questions import question, same_answer
from chiasm.pipeline.scenes.recall import Recall
from chiasm.pipeline.scenes.samples import facts_of_sample, samples
from chiasm.pipeline.scenes.words import LANGUAGES
from chiasm.pipeline.scenes.world import TWINS, Scene, gallery
from chiasm.pipeline.shards import list_shards, write_shard
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.timing import Stopwatch

PER_SHARD = 250
BATCH = 100  # questions searched together
PER_SEARCH = 5  # hits of a question that are shown


@dataclass(frozen=True)
class Question:
    """What the demo asks, and what a right answer has to be true of."""

    query: Query
    claims: Claims


@dataclass(frozen=True)
class Answered:
    """A question about a picture that was found: what pocket answered, and the right answer."""

    caption: str
    question: str
    answer: str
    wanted: str

    @property
    def right(self) -> bool:
        """Whether both answers are the same."""
        return same_answer(self.answer, self.wanted)


@dataclass(frozen=True)
class Demo:
    """What a demo found. recall: {"text_to_image": {"en": {"r1", "r5", "r10"}, ...}, ...}.
    answered: a question about each hit of `questions`."""

    rows: int
    recall: dict[str, dict[str, Recall]]
    seconds: dict[str, float]
    collection: Path
    sheet: Path
    questions: list[tuple[Answer, list[bool]]]
    answered: list[Answered]

    def as_json(self) -> dict[str, Any]:
        """The shape that docs/formats.md promises."""
        return {
            "rows": self.rows,
            "recall": self.recall,
            "seconds": self.seconds,
            "collection": str(self.collection),
            "sheet": str(self.sheet),
            "answers": {
                "right": sum(item.right for item in self.answered),
                "of": len(self.answered),
            },
        }


@dataclass(frozen=True)
class Row:
    """One embedded scene: its id, the facts, and the captions' claims, all from its own json."""

    id: str
    scene: Scene
    claims: Claims
    english: str
    chinese: str


def run_demo(
    seed: int,
    count: int,
    to: Path,
    *,
    report: Callable[[str], None] = lambda line: None,
    show: Callable[[Progress], None] = lambda progress: None,
) -> Demo:
    """Make `count` scenes from `seed` under `to`, embed and index them, ask and measure."""
    load_faiss()  # where it is missing, it is missed now and not after the embedding
    clock = Stopwatch()
    collection = to / "collection"
    with clock.stage("shards"):
        report(f"drawing {count:,} scenes from seed {seed} into {to / 'shards'}")
        shards = make_shards(to, seed, count)
    with clock.stage("embed"):
        report(f"embedding them with pocket on a local Ray into {collection}")
        request = EmbedRequest(
            list_shards(shards), str(collection), compose(flags={"encoder.name": DEFAULT_ENCODER})
        )
        summary = embed_shards(request, show)
        if (error := summary_error(summary)) is not None:
            raise error
    with clock.stage("index"):
        report("building the index")
        build_index(str(collection))
    with clock.stage("questions"):
        searcher = open_collection(collection)
        rows, images = read_rows(collection)
        questions = ask(searcher, rows)
        write_sheet([answer for answer, _ in questions], to / "hits.png")
    with clock.stage("recall"):
        report(f"measuring recall: {3 * len(rows):,} searches")
        recall = measure(searcher, rows, images)
    with clock.stage("answers"):
        report("asking pocket about the pictures found")
        answerer = load_answerer(DEFAULT_ENCODER)
        answered = ask_hits(answerer, [answer for answer, _ in questions], rows)
    seconds = {stage: round(spent, 2) for stage, spent in clock.seconds.items()}
    return Demo(len(rows), recall, seconds, collection, to / "hits.png", questions, answered)


def make_shards(to: Path, seed: int, count: int) -> list[str]:
    """Write the scenes as shards, unless the same ones are there; returns their paths."""
    if count <= TWINS:
        raise UsageError(
            "--samples", expected=f"at least {TWINS + 1}, a scene and its twins", found=str(count)
        )
    folder = Folder(str(to))
    made = json.dumps({"seed": seed, "samples": count}).encode()
    found = folder.read_bytes("demo.json") if folder.exists("demo.json") else None
    if found is not None and found != made:
        raise UsageError(
            str(to),
            expected=f"a demo of {made.decode()}",
            found=found.decode(errors="replace"),
            do="choose another folder with --to",
        )
    paths = [str(to / "shards" / f"scenes-{n:05d}.tar") for n in range(-(-count // PER_SHARD))]
    if found is None:
        drawn = samples(gallery(count, seed), seed)
        for path in paths:
            write_shard(path, itertools.islice(drawn, PER_SHARD))
        folder.write_whole("demo.json", made)  # last: its presence says that the shards are whole
    return paths


def read_rows(collection: Path) -> tuple[list[Row], np.ndarray]:
    """All rows of a collection of scenes, and their image vectors, (N, D) float16."""
    rows: list[Row] = []
    images = []
    for file in embeddings(Folder(str(collection))):
        table = file.read(["json", "image"])
        for number, text in enumerate(table["json"].to_pylist()):
            sample = json.loads(text)
            scene, claims = facts_of_sample(sample)
            name = row_id(file.shard_id, number, file.edition)
            rows.append(Row(name, scene, claims, sample["captions"][0], sample["zh"][0]))
        images.append(vectors_of(table["image"])[0])
    return rows, np.concatenate(images)


def ask(searcher: Searcher, rows: Sequence[Row]) -> list[tuple[Answer, list[bool]]]:
    """A few questions and their answers; for each hit whether the question is true of it."""
    scenes = {row.id: row.scene for row in rows}
    first, second, third = rows[0], rows[len(rows) // 3], rows[2 * len(rows) // 3]
    questions = [
        Question(Query(first.english, k=PER_SEARCH), first.claims),
        Question(Query(second.english, k=PER_SEARCH), second.claims),
        Question(Query(third.chinese, k=PER_SEARCH), third.claims),
    ]
    answers = searcher.search_many([question.query for question in questions])
    return [
        (answer, [holds(question.claims, scenes[result.id]) for result in answer])
        for question, answer in zip(questions, answers, strict=True)
    ]


def ask_hits(answerer: Answerer, answers: Sequence[Answer], rows: Sequence[Row]) -> list[Answered]:
    """A question about each hit, in either language, drawn from its facts with the right answer."""
    scenes = {row.id: row.scene for row in rows}
    requests, wanted = [], []
    for result in itertools.chain.from_iterable(answers):
        rng = random.Random(f"demo {result.id}")
        example = question(scenes[result.id], rng, rng.choice(LANGUAGES))
        if example is not None:
            image = pixels_of(result.picture(), answerer)
            requests.append(Request("ask", example.language, image, example.source))
            wanted.append((result.caption or "", example))
    replies = map(_reply, answer_batch(answerer, requests, GenerateSettings()))
    return [
        Answered(caption, example.source, reply.text, example.target)
        for (caption, example), reply in zip(wanted, replies, strict=True)
    ]


def _reply(found: Reply | Fault) -> Reply:
    if isinstance(found, Fault):
        raise ChiasmError(f"pocket: {found}")
    return found


def measure(
    searcher: Searcher, rows: Sequence[Row], images: np.ndarray
) -> dict[str, dict[str, Recall]]:
    """Recall by claims: every caption against all pictures, every picture against all captions."""
    position = {row.id: number for number, row in enumerate(rows)}
    correct = holds_matrix([row.claims for row in rows], [row.scene for row in rows])

    def recall(queries: Sequence[Query], right: np.ndarray) -> Recall:
        hits = [
            [position[result.id] for result in answer]
            for start in range(0, len(queries), BATCH)
            for answer in searcher.search_many(queries[start : start + BATCH])
        ]
        return {name: round(share, 4) for name, share in recalls(right_at(hits, right)).items()}

    k = max(KS)
    english = [Query(row.english, k=k) for row in rows]
    chinese = [Query(row.chinese, k=k) for row in rows]
    pictures = [Query(vector=vector.astype(np.float32), column="text", k=k) for vector in images]
    return {
        "text_to_image": {"en": recall(english, correct), "zh": recall(chinese, correct)},
        "image_to_text": {"en": recall(pictures, correct.T)},
    }
