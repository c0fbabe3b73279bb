"""Recall of the pocket encoder on galleries of fresh seeds, straight from the encoder, without Ray.

    python -m benchmarks.pocket_recall --seed 9001 --seed 9002 --samples 1000

Each gallery's scenes have at least three others one attribute away. A hit is right if every claim
of the caption is true of the picture's scene. The world is small enough for a training to have
drawn some scenes of any gallery, in other looks and words: with --trained-steps the training's
scenes are listed again, and recall is told for those queries too whose scene was not among them.
Two more galleries of each seed: combinations withheld from training (pipeline/scenes/unseen.py),
asked for by those queries that tell one; hard twins (pipeline/scenes/hard_twins.py), each scene
among nine others one change away.
Prints JSON and writes benchmarks/results/pocket_recall.json.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, tell_and_keep
from chiasm.pipeline.encoders import Encoder, load_encoder
from chiasm.pipeline.metrics import recalls, right_at, top_k
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.scenes.claims import Claims, holds_matrix
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.hard_twins import hard_gallery
from chiasm.pipeline.scenes.unseen import unseen_gallery, withheld_in
from chiasm.pipeline.scenes.words import LANGUAGES, plan, render_caption
from chiasm.pipeline.scenes.world import Scene, gallery
from chiasm.pipeline.training.pocket.data import DataSettings, scenes_of
from chiasm.pipeline.training.pocket.evaluate import gallery_recall
from chiasm.pipeline.training.pocket.settings import TrainSettings
from tests.support.encoding import encode_images, encode_texts, preprocess

RESULT = Path(__file__).parent / "results" / "pocket_recall.json"


def main() -> None:
    """Measure, print, write."""
    given = _arguments()
    started = time.perf_counter()
    encoder = load_encoder(given.encoder, EncoderSettings(precision=given.precision))
    load_seconds = time.perf_counter() - started
    galleries: dict[str, Any] = {}
    for seed in given.seed:
        galleries[str(seed)] = gallery_recall(
            lambda images: encode_images(encoder, [preprocess(encoder, image) for image in images]),
            lambda texts: encode_texts(encoder, texts),
            given.samples,
            seed,
        )
    found = {
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "precision": encoder.precision,
        "samples": given.samples,
        "galleries": galleries,
        "mean": _mean(list(galleries.values())),
        "withheld_combinations": other_galleries(encoder, given, _withheld),
        "hard_twins": other_galleries(encoder, given, _hard),
        "by_kind_of_query": by_kind_of_query(encoder, given.seed, given.samples, _trained(given)),
        "load_seconds": round(load_seconds, 3),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }
    tell_and_keep(found, given.to)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="pocket")
    parser.add_argument("--seed", type=int, nargs="+", default=[9001, 9002, 9003])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--trained-steps", type=int, default=0, help="of the training, to redo")
    parser.add_argument("--trained-batch", type=int, default=DataSettings.batch)
    parser.add_argument("--trained-seed", type=int, default=DataSettings.seed)
    parser.add_argument("--to", type=Path, default=RESULT)
    return parser.parse_args()


def _trained(given: argparse.Namespace) -> set[Any]:
    """The facts of every scene that the training drew."""
    feed = replace(TrainSettings().data, seed=given.trained_seed, batch=given.trained_batch)
    drawn = (scenes_of(step, feed) for step in range(given.trained_steps))
    return {scene.facts for scene in itertools.chain.from_iterable(drawn)}


def by_kind_of_query(
    encoder: Encoder, seeds: Sequence[int], samples: int, trained: set[Any]
) -> dict[str, Any]:
    """English text to image over all galleries: by the number of things, for partial captions, and
    for scenes that the training never drew."""
    ranked: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
        scenes, rng = gallery(samples, seed), random.Random(f"by kind {seed}")
        pixels = [preprocess(encoder, picture(scene)) for scene in scenes]
        images = encode_images(encoder, pixels)
        for complete in (True, False):
            claims = [plan(scene, rng, complete) for scene in scenes]
            texts = encode_texts(encoder, [render_caption(claim, rng) for claim in claims])
            correct = holds_matrix(claims, scenes)
            right = right_at(top_k(texts @ images.T, 10), correct)
            for name, rows in _kinds(scenes, complete, trained).items():
                ranked.setdefault(name, []).append(right[rows])
    figures = {}
    for name, parts in ranked.items():
        right = np.concatenate(parts)
        figures[name] = {
            "queries": len(right),
            **{k: round(r, 4) for k, r in recalls(right).items()},
        }
    return figures


Gallery = tuple[list[Scene], list[Claims], list[int]]  # scenes, claims of each, which to ask


def _withheld(samples: int, seed: int) -> Gallery:
    scenes, claims = unseen_gallery(samples, seed)
    return scenes, claims, [n for n, scene in enumerate(scenes) if withheld_in(scene)]


def _hard(samples: int, seed: int) -> Gallery:
    scenes, rng = hard_gallery(samples, seed), random.Random(f"hard {seed}")
    return scenes, [plan(scene, rng) for scene in scenes], list(range(len(scenes)))


def other_galleries(
    encoder: Encoder, given: argparse.Namespace, made: Callable[[int, int], Gallery]
) -> dict[str, Any]:
    """Text to image over the galleries of all seeds together, in each language."""
    ranked: dict[str, list[np.ndarray]] = {language: [] for language in LANGUAGES}
    for seed in given.seed:
        scenes, claims, queries = made(given.samples, seed)
        pixels = [preprocess(encoder, picture(scene)) for scene in scenes]
        images, rng = encode_images(encoder, pixels), random.Random(f"tell {seed}")
        correct = holds_matrix([claims[n] for n in queries], scenes)
        for language in LANGUAGES:
            texts = encode_texts(
                encoder, [render_caption(claims[n], rng, language) for n in queries]
            )
            ranked[language].append(right_at(top_k(texts @ images.T, 10), correct))
    found: dict[str, Any] = {"queries": sum(map(len, ranked[LANGUAGES[0]]))}
    for language in LANGUAGES:
        recall = recalls(np.concatenate(ranked[language]))
        found[language] = {k: round(r, 4) for k, r in recall.items()}
    return found


def _kinds(scenes: Sequence[Scene], complete: bool, trained: set[Any]) -> dict[str, list[int]]:
    """Name of a kind of query -> the scenes that it asks for."""
    if not complete:
        return {"partial captions": list(range(len(scenes)))}
    kinds = {
        name: [n for n, scene in enumerate(scenes) if len(scene.things) == count]
        for count, name in enumerate(("one thing", "two things", "three things"), 1)
    }
    if trained:
        kinds["scenes never drawn in training"] = [
            n for n, scene in enumerate(scenes) if scene.facts not in trained
        ]
    return kinds


def _mean(galleries: list[dict[str, dict[str, dict[str, float]]]]) -> dict[str, Any]:
    """The mean over galleries of every recall."""
    return {
        direction: {
            language: {
                k: round(sum(g[direction][language][k] for g in galleries) / len(galleries), 4)
                for k in recall
            }
            for language, recall in languages.items()
        }
        for direction, languages in galleries[0].items()
    }


if __name__ == "__main__":
    main()
