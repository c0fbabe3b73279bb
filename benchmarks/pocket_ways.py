"""Ways to fuse, on the same towers: what is a joint vector worth, made in each of them?

    chiasm train pocket --towers pipeline/pocket --fusion concat --fusion-steps 1200 --to DIR
    python -m benchmarks.pocket_ways DIR... --seed 9001 9002 9003 --samples 1000

Captions that leave things unsaid are fused with their pictures and asked for by other such captions
of the same scenes (pipeline/training/pocket/evaluate_joint.py). One row a model, named by its way
and the steps its fusion learned for, with the seconds that those took, beside the picture, the
caption and the best weighted mean, which all of them share. Prints JSON and writes
benchmarks/results/pocket_ways.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, tell_and_keep
from chiasm.pipeline.encoders import load_encoder, require_matcher
from chiasm.pipeline.model.checkpoint import load_model
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.training.log import read_log
from chiasm.pipeline.training.pocket.evaluate_joint import joint

RESULT = Path(__file__).parent / "results" / "pocket_ways.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="folders of chiasm train")
    parser.add_argument("--seed", type=int, nargs="+", default=[9001, 9002, 9003])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    started = time.perf_counter()
    found: dict[str, Any] = {}
    for folder in given.models:
        settings = EncoderSettings(precision=given.precision)
        encoder = require_matcher(load_encoder(f"pocket:{folder}", settings))
        found[way_of(folder)] = {
            "seconds_of_training": seconds_of_fusion(folder),
            **joint(encoder, given.seed, given.samples),
        }
    result = {
        "seeds": given.seed, "samples": given.samples, "precision": given.precision, "ways": found,
        "seconds": round(time.perf_counter() - started, 1), "machine": machine(),
    }  # fmt: skip
    tell_and_keep(result, given.to)


def way_of(folder: Path) -> str:
    """How a model fuses, and for how many steps it learned to."""
    network, _ = load_model(folder)
    assert network.config.fusion is not None, f"{folder} holds two towers alone"
    steps = [record["step"] for record in read_log(folder) if record["stage"] == "fusion"]
    # The second stage's first line comes `log_every` steps in.
    return f"{network.config.fusion.fusion}, {steps[-1] - steps[0] + steps[1] - steps[0]} steps"


def seconds_of_fusion(folder: Path) -> float:
    """From the first step after the towers to the last: wall-clock seconds, as logged."""
    stage = [record for record in read_log(folder) if "joint" in record]
    before = [record["seconds"] for record in read_log(folder) if "contrast" in record]
    return stage[-1]["seconds"] - (before[-1] if before else 0.0)


if __name__ == "__main__":
    main()
