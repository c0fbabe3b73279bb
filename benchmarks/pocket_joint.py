"""What matching and fusion add to two towers, on scenes of fresh seeds, straight from the encoder.

    python -m benchmarks.pocket_joint --encoder pocket:DIR --seed 9001 9002 9003 --samples 1000

Hard twins by vectors and by matching, and matching accuracy on one change
(pipeline/training/pocket/evaluate_fusion.py); joint vectors of captions that leave things unsaid,
beside the best weighted mean (evaluate_joint.py). Prints JSON and writes
benchmarks/results/pocket_joint.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, tell_and_keep
from chiasm.pipeline.encoders import load_encoder, require_matcher
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.scenes.words import LANGUAGES
from chiasm.pipeline.training.pocket.evaluate_fusion import accuracy, hard_twins
from chiasm.pipeline.training.pocket.evaluate_joint import joint

RESULT = Path(__file__).parent / "results" / "pocket_joint.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="pocket")
    parser.add_argument("--seed", type=int, nargs="+", default=[9001, 9002, 9003])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    started = time.perf_counter()
    encoder = require_matcher(
        load_encoder(given.encoder, EncoderSettings(precision=given.precision))
    )
    found = {
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "precision": encoder.precision,
        "seeds": given.seed,
        "samples": given.samples,
        "hard_twins": {
            language: _mean([hard_twins(encoder, s, given.samples, language) for s in given.seed])
            for language in LANGUAGES
        },
        "matching_accuracy": _mean([accuracy(encoder, s, given.samples) for s in given.seed]),
        "joint": joint(encoder, given.seed, given.samples),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }
    tell_and_keep(found, given.to)


def _mean(measured: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The means of figures over seeds; of standard errors that of the mean."""
    found = {}
    for name in measured[0]:
        values = np.array([each[name] for each in measured])
        error = name.endswith("_error")
        mean = np.sqrt(np.square(values).sum()) / len(values) if error else values.mean()
        found[name] = round(float(mean), 4)
    return found


if __name__ == "__main__":
    main()
