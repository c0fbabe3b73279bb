"""The report of a training: how good the model is on scenes of a fresh seed.

    recall      of complete captions among twins, both directions and languages (evaluate.py)
    withheld    the same by combinations of colour, kind and relation never shown in training
    hard_twins, matching_accuracy: what matching adds (evaluate_fusion.py)
    joint       what fusion adds (evaluate_joint.py); fusion_ships false: its joint vectors are the
                weighted mean, which they did not beat (calibrate.py)
    tasks       how often the decoder is right, by task, language and type, and both of a pair, with
                standard errors (task_report.py)

Written as report.json beside the model, from the model folder as an encoder reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chiasm.pipeline.encoders import load_encoder, require_matcher
from chiasm.pipeline.model.checkpoint import load_model, write_file
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import PRECISIONS
from chiasm.pipeline.records import TEXT
from chiasm.pipeline.scenes.words import LANGUAGES
from chiasm.pipeline.training.pocket.evaluate import gallery_recall
from chiasm.pipeline.training.pocket.evaluate_fusion import (
    accuracy,
    encode_pictures,
    hard_twins,
    withheld,
)
from chiasm.pipeline.training.pocket.evaluate_joint import format_joint, joint
from chiasm.pipeline.training.pocket.task_data import TaskSettings
from chiasm.pipeline.training.pocket.task_report import format_tasks, task_figures

REPORT = "report.json"
SEED = 161803  # of galleries that neither training nor its evaluations draw


def write_report(
    folder: Path, samples: int, settings: EncoderSettings, tasks: TaskSettings
) -> dict[str, Any]:
    """Measure the model of a folder on galleries of so many scenes, its decoder by the tasks that
    it was trained on; -> what is written."""
    encoder = load_encoder(f"pocket:{folder}", settings)
    found: dict[str, Any] = {
        "samples": samples,
        "seed": SEED,
        "precision": encoder.precision,
        "recall": gallery_recall(
            lambda images: encode_pictures(encoder, images),
            lambda texts: encoder.encode(TEXT, texts).vectors,
            samples,
            SEED,
        ),
        "withheld": {
            language: withheld(encoder, SEED, samples, language) for language in LANGUAGES
        },
    }
    model, tokenizer = load_model(folder, PRECISIONS[encoder.precision])
    if model.fusion is not None:
        matcher = require_matcher(encoder)
        found["hard_twins"] = {
            language: hard_twins(matcher, SEED, samples, language) for language in LANGUAGES
        }
        found["matching_accuracy"] = accuracy(matcher, SEED, samples)
        found["joint"] = {
            "fusion_ships": not model.fusion.is_mean,
            **joint(matcher, [SEED], samples),
        }
    if model.decoder is not None:
        model = model.to(encoder.device)
        found["tasks"] = task_figures(model, tokenizer, tasks, samples, SEED)
    text = json.dumps(found, indent=2, default=float) + "\n"
    write_file(folder / REPORT, text.encode())
    return found


def format_report(report: dict[str, Any]) -> list[str]:
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
        f"  {name:<22}" + "".join(f"{recall[item]:8.3f}" for item in LANGUAGES)
        for name, recall in by_language.items()
    ]
    if "joint" in report:
        right = report["matching_accuracy"]["all"]
        lines.append(f"accuracy of matching on pairs with one change: {right:.3f}")
        lines += format_joint(report["joint"])
        if not report["joint"]["fusion_ships"]:
            lines.append(
                "the joint vector did not beat the best weighted mean: it is that mean now"
            )
    if "tasks" in report:
        lines += format_tasks(report["tasks"])
    return lines
