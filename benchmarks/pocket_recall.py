"""Recall of the pocket encoder on galleries of fresh seeds, straight from the encoder, without Ray.

    python benchmarks/pocket_recall.py --seed 9001 --seed 9002 --samples 1000

Each gallery's scenes have at least three others one attribute away. A hit is right if every claim
of the caption is true of the picture's scene. Prints JSON and writes
benchmarks/results/pocket_recall.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.encoders import EncoderSettings, load_encoder
from pipeline.model.measure import measure

RESULT = Path(__file__).parent / "results" / "pocket_recall.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="pocket")
    parser.add_argument("--seed", type=int, action="append", help="of a gallery; may be repeated")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    started = time.perf_counter()
    encoder = load_encoder(given.encoder, EncoderSettings(precision=given.precision))
    load_seconds = time.perf_counter() - started
    galleries: dict[str, Any] = {}
    for seed in given.seed or [9001, 9002, 9003]:
        galleries[str(seed)] = measure(
            lambda images: encoder.encode_images([encoder.preprocess(image) for image in images]),
            encoder.encode_texts,
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
        "load_seconds": round(load_seconds, 3),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
    }
    text = json.dumps(found, indent=2)
    given.to.parent.mkdir(parents=True, exist_ok=True)
    given.to.write_text(text + "\n", encoding="utf-8")
    print(text)


def _mean(galleries: list[dict[str, dict[str, dict[str, float]]]]) -> dict[str, Any]:
    """The mean over galleries of every recall."""
    first = galleries[0]
    return {
        direction: {
            language: {
                k: round(sum(g[direction][language][k] for g in galleries) / len(galleries), 4)
                for k in recall
            }
            for language, recall in languages.items()
        }
        for direction, languages in first.items()
    }


if __name__ == "__main__":
    main()
