"""The last word of a training: what the model is worth on scenes of a fresh seed.

    recall      of complete captions among twins, both ways, both languages (measure.py)
    withheld    the same by combinations of colour, kind and relation never met in training
    hard_twins, matching_accuracy, joint: what matching and fusion add (trials.py), where there are

Written as report.json beside the model, from the model folder as an encoder reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.pipeline.encoders.pocket import load
from chiasm.pipeline.model.checkpoint import write_whole
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.scenes.words import LANGUAGES
from chiasm.pipeline.training.pocket.evaluate import measure
from chiasm.pipeline.training.pocket.evaluate_fusion import accuracy, hard_twins, joint, withheld

REPORT = "report.json"
SEED = 161803  # of galleries that neither training nor its evaluations draw


def write_report(folder: Path, samples: int, settings: EncoderSettings) -> dict[str, Any]:
    """Measure the model of a folder on galleries of so many scenes; -> what is written."""
    encoder = load(str(folder), settings)
    found: dict[str, Any] = {
        "samples": samples,
        "seed": SEED,
        "precision": encoder.precision,
        "recall": measure(
            lambda images: (
                encoder.encode(
                    IMAGE, [encoder.preprocess(IMAGE, np.asarray(image)) for image in images]
                ).vectors
            ),
            lambda texts: encoder.encode(TEXT, texts).vectors,
            samples,
            SEED,
        ),
        "withheld": {
            language: withheld(encoder, SEED, samples, language) for language in LANGUAGES
        },
    }
    if encoder.fuses:
        found["hard_twins"] = {
            language: hard_twins(encoder, SEED, samples, language) for language in LANGUAGES
        }
        found["matching_accuracy"] = accuracy(encoder, SEED, samples)
        found["joint"] = joint(encoder, SEED, samples)
    text = json.dumps(found, indent=2, default=float) + "\n"
    write_whole(folder / REPORT, text.encode())
    return found


def told(report: dict[str, Any]) -> list[str]:
    """The report in lines for a person."""
    lines = [f"on {report['samples']:,} scenes of a fresh seed, R@1 English, Chinese:"]
    by_language = {
        "text to image": {k: v["r1"] for k, v in report["recall"]["text_to_image"].items()},
        "image to text": {k: v["r1"] for k, v in report["recall"]["image_to_text"].items()},
        "unmet combinations": {k: v["r1"] for k, v in report["withheld"].items()},
    }
    if "hard_twins" in report:
        twins = report["hard_twins"]
        by_language["hard twins, vectors"] = {k: v["vectors_r1"] for k, v in twins.items()}
        by_language["hard twins, matched"] = {k: v["matching_r1"] for k, v in twins.items()}
    lines += [
        f"  {name:<22}" + "".join(f"{recall[each]:8.3f}" for each in LANGUAGES)
        for name, recall in by_language.items()
    ]
    if "joint" in report:
        right = report["matching_accuracy"]["all"]
        lines.append(f"matching is right about one change: {right:.3f}")
        ways = ", ".join(
            f"{way} {report['joint'][f'{way}_r1']:.3f}"
            for way in ("image", "text", "mean", "fusion")
        )
        lines.append(f"R@1 of captions that tell a part, by vectors: {ways}")
    return lines
