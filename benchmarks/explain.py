"""Do explanations point at the right thing? Measured on drawn scenes, where that is known.

    python -m benchmarks.explain --seed 9101 9102 9103 --samples 100 --deleted 20

Located: in scenes of three things, each in its ninth of the picture, a text names one of them by
kind and colour; is the hottest patch in its place? Deleted: the hottest patches are painted over
first, by the scene's own background or by the picture's mean colour; how fast does the probability
of a match fall, as the mean over all shares deleted, beside a random order? Word: a complete
caption of the scene, in which one word is changed so that it is false; is that the word with the
lowest relevance? The same for captions that say less. Half of the texts are Chinese.
Prints JSON and writes benchmarks/results/explain.json.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, tell_and_keep
from chiasm.pipeline.encoders import (
    ExplainingEncoder,
    Explanation,
    load_encoder,
    require_explainer,
    require_matcher,
)
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.scenes.claims import OPPOSITE, Claims, ThingClaim, holds
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.words import LANGUAGES, plan, render_caption
from chiasm.pipeline.scenes.world import WORLD_1, Scene, Thing, random_scene

RESULT = Path(__file__).parent / "results" / "explain.json"
THINGS = 3
PLACES = 3  # rows and columns of places
MOST_CHARACTERS = 4  # of a Chinese word that is changed


def main() -> None:
    """Measure, print, write."""
    given = _arguments()
    started = time.perf_counter()
    encoder = require_explainer(
        load_encoder(given.encoder, EncoderSettings(precision=given.precision))
    )
    seeds: dict[str, Any] = {}
    for seed in given.seed:
        named = list(_named_things(seed, given.samples))
        seeds[str(seed)] = {
            "located": located(encoder, named),
            "deleted": deleted(encoder, named[: given.deleted], seed),
            **{
                name: changed_word(encoder, list(_falsified(seed, given.samples, complete)))
                for name, complete in (("word", True), ("word, partial captions", False))
            },
        }
    found = {
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "precision": encoder.precision,
        "samples": given.samples,
        "samples_deleted": given.deleted,
        "seeds": seeds,
        "mean": _mean(list(seeds.values())),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }
    tell_and_keep(found, given.to)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="pocket")
    parser.add_argument("--seed", type=int, nargs="+", default=[9101, 9102, 9103])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--deleted", type=int, default=20, help="samples whose patches are deleted")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--to", type=Path, default=RESULT)
    return parser.parse_args()


@dataclass(frozen=True)
class Named:
    """A scene, one of its things, and a text that names it."""

    scene: Scene
    thing: Thing
    text: str
    language: str


def _named_things(seed: int, count: int) -> Iterator[Named]:
    rng = random.Random(f"explain {seed}")
    made = 0
    while made < count:
        scene = random_scene(rng)
        if len(scene.things) != THINGS:
            continue
        thing, language = rng.choice(scene.things), LANGUAGES[made % len(LANGUAGES)]
        claims = Claims((ThingClaim(kind=thing.kind, colour=thing.colour),))
        yield Named(scene, thing, render_caption(claims, rng, language), language)
        made += 1


def located(encoder: ExplainingEncoder, named: Sequence[Named]) -> dict[str, dict[str, float]]:
    """By each method: how often the hottest patch is in the place of the thing named; in each
    language, and of small and big things."""
    pictures = [np.asarray(picture(item.scene)) for item in named]
    texts = [item.text for item in named]
    found: dict[str, dict[str, float]] = {}
    for method in encoder.methods[1:]:
        hits: dict[str, list[bool]] = defaultdict(list)
        for item, why in zip(named, encoder.explain(pictures, texts, method), strict=True):
            hit = _hottest_place(why) == (item.thing.row, item.thing.column)
            for name in ("all", item.language, item.thing.size):
                hits[name].append(hit)
        found[method] = {name: float(np.mean(some)) for name, some in sorted(hits.items())}
    return found


def _hottest_place(why: Explanation) -> tuple[int, int]:
    """Row and column of the place in which the hottest patch has its centre; of NaN no place."""
    if np.isnan(why.patches).any():
        return -1, -1
    rows, columns = why.patches.shape
    row, column = divmod(int(why.patches.argmax()), columns)
    left, top, right, bottom = why.box
    y = top + (row + 0.5) / rows * (bottom - top)
    x = left + (column + 0.5) / columns * (right - left)
    return int(y * PLACES), int(x * PLACES)


def deleted(
    encoder: ExplainingEncoder, named: Sequence[Named], seed: int
) -> dict[str, dict[str, float]]:
    """Mean probability of a match over all shares of deleted patches, hottest first by each method,
    and in random order, for each filling."""
    pictures = [np.asarray(picture(item.scene)) for item in named]
    fillings = {
        "background": [np.asarray(picture(replace(item.scene, things=()))) for item in named],
        "mean colour": [
            np.broadcast_to(each.mean((0, 1)).astype(np.uint8), each.shape) for each in pictures
        ],
    }
    texts = [item.text for item in named]
    maps = {
        method: [why.patches for why in encoder.explain(pictures, texts, method)]
        for method in encoder.methods[1:]
    }
    rng = np.random.default_rng(seed)
    maps["random"] = [rng.random(each.shape) for each in next(iter(maps.values()))]
    return {
        name: {
            method: _area(encoder, pictures, filling, texts, heat) for method, heat in maps.items()
        }
        for name, filling in fillings.items()
    }


def _area(
    encoder: ExplainingEncoder,
    pictures: Sequence[np.ndarray],
    fillings: Sequence[np.ndarray],
    texts: Sequence[str],
    heat: Sequence[np.ndarray],
) -> float:
    """The area under the curve of one way of deletion, by trapezia, over all pairs."""
    matcher = require_matcher(encoder)
    curves = []
    for row, (image, filling, text) in enumerate(zip(pictures, fillings, texts, strict=True)):
        rows, columns = heat[row].shape
        steps = [image.copy()]
        for patch in np.argsort(-heat[row], axis=None, kind="stable"):
            y, x = divmod(int(patch), columns)
            at = (
                slice(y * image.shape[0] // rows, (y + 1) * image.shape[0] // rows),
                slice(x * image.shape[1] // columns, (x + 1) * image.shape[1] // columns),
            )
            steps.append(steps[-1].copy())
            steps[-1][at] = filling[at]
        items = [encoder.preprocess(IMAGE, step) for step in steps]
        pairs = np.array([(step, 0) for step in range(len(steps))])
        logits = matcher.match((IMAGE, items), (TEXT, [encoder.preprocess(TEXT, text)]), pairs)
        chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
        curves.append(np.mean((chances[1:] + chances[:-1]) / 2))
    return float(np.mean(curves))


@dataclass(frozen=True)
class Falsified:
    """A scene and a text that one word makes false: characters start to end, in what it says of
    `attribute`."""

    scene: Scene
    text: str
    start: int
    end: int
    attribute: str
    language: str


def _falsified(seed: int, count: int, complete: bool) -> Iterator[Falsified]:
    rng = random.Random(f"falsified {seed} {complete}")
    made = 0
    while made < count:
        scene = random_scene(rng)
        claims, language = plan(scene, rng, complete), LANGUAGES[made % len(LANGUAGES)]
        changed = _one_claim_changed(claims, rng)
        if changed is None or holds(changed[1], scene):
            continue
        attribute, wrong = changed
        wording = rng.random()
        true, false = (
            render_caption(each, random.Random(wording), language) for each in (claims, wrong)
        )
        if (span := _one_word(true, false, language)) is not None:
            yield Falsified(scene, false, *span, attribute, language)
            made += 1


def _one_claim_changed(claims: Claims, rng: random.Random) -> tuple[str, Claims] | None:
    """What is changed, and the claims with another value; None where that is not claimed."""
    fields = ("kind", "colour", "size", "texture")
    places = [(row, name) for row in range(len(claims.things)) for name in fields]
    row, name = rng.choice([*places, (0, "background"), *[(0, "relation")] * len(claims.relations)])
    if name == "background":
        if claims.background is None:
            return None
        others = [each for each in WORLD_1.backgrounds if each != claims.background]
        return name, replace(claims, background=rng.choice(others))
    if name == "relation":
        ((i, relation, j),) = claims.relations
        return name, replace(claims, relations=((i, OPPOSITE[relation], j),))
    things = list(claims.things)
    present = getattr(things[row], name)
    if present is None:
        return None
    others = [each for each in WORLD_1.values[name] if each != present]
    things[row] = replace(things[row], **{name: rng.choice(others)})
    return name, replace(claims, things=tuple(things))


def _one_word(true: str, false: str, language: str) -> tuple[int, int] | None:
    """Where two texts differ, if that is one word of the second."""
    shortest = min(len(true), len(false))
    first = next((at for at in range(shortest) if true[at] != false[at]), shortest)
    last = next(
        (at for at in range(shortest - first) if true[-1 - at] != false[-1 - at]), shortest - first
    )
    start, ends = first, (len(true) - last, len(false) - last)
    if language == "en":  # to whole words: "black" and "blue" share letters
        start = false.rfind(" ", 0, start) + 1
        ends = tuple(
            each if (each := text.find(" ", end)) >= 0 else len(text)
            for text, end in zip((true, false), ends, strict=True)
        )
    parts = true[start : ends[0]], false[start : ends[1]]
    one = all(parts) and not any(" " in part for part in parts)
    if not one or (language == "zh" and len(parts[1]) > MOST_CHARACTERS):
        return None
    return start, ends[1]


def changed_word(
    encoder: ExplainingEncoder, falsified: Sequence[Falsified]
) -> dict[str, dict[str, float]]:
    """By each method: how often the word of lowest relevance is the one that was changed; in each
    language, by attribute, and of texts that the model declares false."""
    pictures = [np.asarray(picture(item.scene)) for item in falsified]
    texts = [item.text for item in falsified]
    found: dict[str, dict[str, float]] = {}
    for method in encoder.methods:
        hits: dict[str, list[bool]] = defaultdict(list)
        for item, why in zip(falsified, encoder.explain(pictures, texts, method), strict=True):
            word = min(why.words, key=lambda word: word.relevance)
            numbers = not any(math.isnan(each.relevance) for each in why.words)
            hit = numbers and word.start < item.end and word.end > item.start
            refused = ["declared false"] if why.logit is not None and why.logit < 0 else []
            for name in ("all", item.language, item.attribute, *refused):
                hits[name].append(hit)
        found[method] = {name: float(np.mean(some)) for name, some in sorted(hits.items())}
    return found


def _mean(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure: the mean over seeds, and how far apart they are."""
    first, figures = seeds[0], {}
    for name, value in first.items():
        same = [each[name] for each in seeds if name in each]
        figures[name] = (
            _mean(same)
            if isinstance(value, dict)
            else [round(float(np.mean(same)), 4), round(min(same), 4), round(max(same), 4)]
        )
    return figures


if __name__ == "__main__":
    main()
