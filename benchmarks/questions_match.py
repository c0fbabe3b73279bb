"""`chiasm ask COLLECTION`: refused where nothing matches, answered where something does?

Scenes of world 1 with English captions, and with Chinese ones, by the shipped `pocket`. A kind of
thing is left out, and questions of every type about that kind have nothing here; questions about
the other kinds have. Also combinations of a colour and a kind, by "is there a red boat?". Each
question is searched for as it is, and by its content words: which share of questions is answered,
and of how many of those about something here the first picture has the thing.

    python -m benchmarks.questions_match
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, tell_and_keep
from benchmarks.nothing_matches import Collection, Gallery, _batched, _texts
from chiasm.index.content_words import content_words
from chiasm.index.queries import CALIBRATED_HITS
from chiasm.index.query.calibrate import Calibration, features
from chiasm.index.query.calibration_sample import calibrate
from chiasm.pipeline.encoders import Encoder, load_encoder
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.question_facts import Query
from chiasm.pipeline.scenes.question_forms import FORMS
from chiasm.pipeline.scenes.question_words import phrases
from chiasm.pipeline.scenes.questions import question_text
from chiasm.pipeline.scenes.samples import COMPLETE
from chiasm.pipeline.scenes.words import plan, render_caption
from chiasm.pipeline.scenes.world import COLOURS, KINDS, Scene, gallery
from tests.support.encoding import encode_images, preprocess

RESULT = Path(__file__).parent / "results" / "questions_match.json"
RATE = 0.05
SEED = 4200
TYPES = ("colour", "size", "pattern", "where", "is_there", "what_related")
RELATIONS = ("left of", "right of", "above", "below")
WAYS: dict[str, Callable[[str], str]] = {"as it is": str, "content words": content_words}
Asked = tuple[str, str, str]  # question, kind, colour or ""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--kinds", type=int, default=12, help="kinds and combinations left out")
    parser.add_argument("--questions", type=int, default=100, help="a kind, of each sort")
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    started = time.perf_counter()
    found: dict[str, Any] = {"stated_rate": RATE, "rows": given.scenes, "seed": SEED}
    encoder = load_encoder("pocket", EncoderSettings())
    drawn = gallery(given.scenes, SEED)
    pixels = [preprocess(encoder, picture(scene)) for scene in drawn]
    for language in ("en", "zh"):
        rows = _gallery(encoder, drawn, pixels, language)
        kinds = random.Random(SEED).sample(KINDS, given.kinds)
        for sort in ("kinds", "combinations"):
            parts = [_left_out(rows, drawn, encoder, language, kind, sort, given) for kind in kinds]
            found[f"{language}, {sort}"] = _mean(parts)
    found |= {"seconds": round(time.perf_counter() - started, 1), "machine": machine()}
    tell_and_keep(found, given.to)


def _gallery(
    encoder: Encoder, drawn: Sequence[Scene], pixels: Sequence[Any], language: str
) -> Gallery:
    captions = []
    for number, scene in enumerate(drawn):
        rng = random.Random(f"questions match {SEED} {number}")
        captions.append([render_caption(plan(scene, rng, c), rng, language) for c in COMPLETE])
    texts = _texts(encoder, list(itertools.chain(*captions))).reshape(len(drawn), 3, -1)
    images = np.concatenate([encode_images(encoder, some) for some in _batched(pixels, 64)])
    return Gallery(images, captions, texts, indexed_caption=False)


def _left_out(
    rows: Gallery,
    drawn: Sequence[Scene],
    encoder: Encoder,
    language: str,
    kind: str,
    sort: str,
    given: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Without the rows that have the kind, or a colour of it."""
    rng = random.Random(f"{language} {kind} {sort}")
    colour = rng.choice(COLOURS) if sort == "combinations" else ""
    left = np.array([i for i, scene in enumerate(drawn) if not _has(scene, kind, colour)])
    collection = Collection(rows, left)
    calibration = calibrate(collection)
    count = given.questions if sort == "kinds" else 1
    nothing = [_question(kind, colour, language, rng) for _ in range(count)]
    here: list[Asked] = []
    while len(here) < given.questions:
        thing = rng.choice(drawn[rng.choice(left)].things)
        if thing.kind != kind:
            here.append(_question(thing.kind, colour and thing.colour, language, rng))
    return {
        name: _answered(collection, calibration, drawn, encoder, way, nothing, here)
        for name, way in WAYS.items()
    }


def _question(kind: str, colour: str, language: str, rng: random.Random) -> Asked:
    if colour:
        words = phrases(colour, language)[0], phrases(kind, language)[0]
        form = "is there a {} {}?" if language == "en" else "有{}的{}吗？"
        return form.format(*words), kind, colour
    name = rng.choice(TYPES)
    related = name == "what_related"
    query = Query(other=kind, relation=rng.choice(RELATIONS)) if related else Query(thing=kind)
    return question_text(rng.choice(FORMS[language][name]), query, rng, language), kind, ""


def _answered(
    collection: Collection,
    calibration: Calibration,
    drawn: Sequence[Scene],
    encoder: Encoder,
    way: Callable[[str], str],
    nothing: Sequence[Asked],
    here: Sequence[Asked],
) -> dict[str, float]:
    """Shares of questions that are answered, and of first pictures that have the thing."""
    answered, first = [], []
    texts = [way(text) for text, _, _ in (*nothing, *here)]
    xq = _texts(encoder, texts)
    for text, scores, top in zip(texts, *collection.search(xq, CALIBRATED_HITS), strict=True):
        captions = itertools.chain(*collection.captions(top.tolist()).values())
        named = calibration.named(list(captions))
        found = features(scores, named, calibration.weights(text))
        answered.append(calibration.p_value(found) <= RATE)
        first.append(drawn[collection.rows[top[0]]])
    has = [_has(scene, *one[1:]) for one, scene in zip(here, first[len(nothing) :], strict=True)]
    return {
        "nothing_here_answered": float(np.mean(answered[: len(nothing)])),
        "here_answered": float(np.mean(answered[len(nothing) :])),
        "first_has_it": float(np.mean(has)),
    }


def _has(scene: Scene, kind: str, colour: str) -> bool:
    return any(thing.kind == kind and colour in ("", thing.colour) for thing in scene.things)


def _mean(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, str]]:
    """Means over what was left out, with their standard errors."""
    means: dict[str, dict[str, str]] = {}
    for way in WAYS:
        means[way] = {}
        for name in parts[0][way]:
            values = [part[way][name] for part in parts]
            error = np.std(values, ddof=1) / len(values) ** 0.5
            means[way][name] = f"{np.mean(values):.3f} +- {error:.3f}"
    return means


if __name__ == "__main__":
    main()
