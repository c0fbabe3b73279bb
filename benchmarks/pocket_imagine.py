"""How well a model draws captions: judged by another model, and by the pixels.

    python -m benchmarks.pocket_imagine --model pocket:DIR --judge pocket:DIR_OF_ANOTHER_SEED
    python -m benchmarks.pocket_imagine --judge pocket:DIR --candidates 1 --sheet X.png

Drawn as `chiasm imagine` does. Of 500 captions, five galleries of 100 with twins, some of them of
combinations that training has never seen: how often the drawn picture finds its own caption first,
beside what the judge gives true pictures, and how often background, colours and places agree
(pipeline/training/pocket/evaluate_imagine.py). `coded_` is that of true pictures through the codes
by which a model folder draws: no drawing by these codes is expected to do more. Prints JSON and
writes benchmarks/results/pocket_imagine.json; with --sheet a contact sheet, the true picture left
of the drawn one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.machine import machine, tell_and_keep
from chiasm.index.sheet.typeface import Typeface
from chiasm.pipeline.encoders import (
    GenerateSettings,
    Sampling,
    load_answerer,
    load_encoder,
    require_task,
)
from chiasm.pipeline.encoders.pocket import PocketEncoder
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.training.pocket.data import WORLDS
from chiasm.pipeline.training.pocket.evaluate_imagine import (
    Drawings,
    draw_gallery,
    measure_drawings,
    side_by_side,
)

RESULT = Path(__file__).parent / "results" / "pocket_imagine.json"
SIDE, GAP, COLUMNS = 144, 16, 3  # of the sheet: pixels of a picture, between them, pairs in a row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--judge", required=True)
    parser.add_argument("--seed", type=int, nargs="+", default=[9501, 9502, 9503, 9504, 9505])
    parser.add_argument("--world", choices=list(WORLDS), default="world 2")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the most probable codes")
    parser.add_argument("--candidates", type=int, help="the model's own number where none is given")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    settings = EncoderSettings(precision=given.precision)
    answerer, encoder = load_answerer(given.model, settings), load_encoder(given.judge, settings)
    require_task(answerer, "imagine")
    sampling = Sampling(given.temperature) if given.temperature else None
    started = time.perf_counter()
    candidates = given.candidates if sampling else 1
    generate = GenerateSettings(sampling=sampling, candidates=candidates)
    drawn = [draw_gallery(answerer, seed, WORLDS[given.world], generate) for seed in given.seed]
    seconds = time.perf_counter() - started
    drawer = load_encoder(given.model, settings)
    tokens = drawer.network.image_tokens if isinstance(drawer, PocketEncoder) else None
    judged = [measure_drawings(drawings, encoder, tokens) for drawings in drawn]
    counts = [len(drawings.texts) for drawings in drawn]
    means = {
        name: float(np.average([of[name] for of in judged], weights=counts)) for name in judged[0]
    }
    found = {
        "model": answerer.name,
        "fingerprint": answerer.fingerprint,
        "judge": encoder.name,
        "judge_fingerprint": encoder.fingerprint,
        "world": given.world,
        "seeds": given.seed,
        "captions": sum(counts),
        "temperature": given.temperature,
        "candidates": given.candidates,
        **means,
        "of_true": means["r1"] / max(means["true_r1"], 1e-9),
        "standard_errors": {
            name: float(np.sqrt(share * (1 - share) / sum(counts))) for name, share in means.items()
        },
        "seconds_per_picture": round(seconds / sum(counts), 4),
        "machine": machine(),
    }
    tell_and_keep(found, given.to)
    if given.sheet:
        sheet(drawn[0], 18).save(given.sheet)


def sheet(drawings: Drawings, count: int) -> Image.Image:
    """The first captions, each below its true and its drawn picture."""
    face, pairs = Typeface(13), list(side_by_side(drawings, count))
    width, lines = 2 * SIDE + GAP // 4, 3
    height = SIDE + round(lines * face.height * 1.2) + GAP
    rows = -(-len(pairs) // COLUMNS)
    paper = Image.new("RGB", (COLUMNS * (width + GAP) + GAP, rows * height + GAP), "white")
    canvas = ImageDraw.Draw(paper)
    for number, (text, true, drawn) in enumerate(pairs):
        left = GAP + number % COLUMNS * (width + GAP)
        top = GAP + number // COLUMNS * height
        for column, item in enumerate((true, drawn)):
            enlarged = item.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            paper.paste(enlarged, (left + column * (width - SIDE), top))
        for row, line in enumerate(_wrapped(text, face, width)[:lines]):
            at = (left, top + SIDE + round(row * face.height * 1.2))
            face.draw(canvas, at, line, "black")
    return paper


def _wrapped(text: str, face: Typeface, width: int) -> Sequence[str]:
    return face.wrap(text, width, 3)


if __name__ == "__main__":
    main()
