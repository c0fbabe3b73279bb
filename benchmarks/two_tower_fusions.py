"""What gates, attention over tokens and regularisation are worth to a fusion on two frozen towers.

    python -m benchmarks.two_tower_fusions RUN

RUN is a folder of `chiasm train two-tower --fusion gated` over photographs with several captions;
its features are taken and nothing is written to it. Heads and fusion learn as the preset has them,
without the samples held out, once for each way to fuse; the fusion moves no head, so all are
compared with the same mean, which is asserted. `one token`: pictures and captions give one token
each, the mean of theirs, so that there is nothing to attend to. `unregularised`: no dropout of
tokens, none left out.
Asked on the pictures held out, with their first captions, by their other captions: R@k of picture,
mean and fusion with standard errors over pictures, and queries that the fusion answers first and
the mean does not, and the other way. The mean's weight, and the hubness power of both, are selected
on the queries of the other half of the pictures. Prints JSON and writes
benchmarks/results/two_tower_fusions.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

from benchmarks.machine import machine, tell_and_keep
from benchmarks.two_tower_variants import queries_of_half
from chiasm.pipeline.model.config import FusionConfig
from chiasm.pipeline.training.paired import recalls_with_errors
from chiasm.pipeline.training.two_tower import loop as train
from chiasm.pipeline.training.two_tower.prepare import Statistics, survey
from chiasm.pipeline.training.two_tower.select import (
    best_mean,
    fused_vectors,
    gallery,
    ranks,
    select_power,
)
from chiasm.pipeline.training.two_tower.stream import pack, stream
from chiasm.pipeline.training.two_tower.trainer import TrainSettings
from chiasm.pipeline.two_tower.checkpoint import config_from_json
from chiasm.pipeline.two_tower.network import TwoTowerConfig

RESULT = Path(__file__).parent / "results" / "two_tower_fusions.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    started = time.perf_counter()
    record = json.loads((given.run / "settings.json").read_text())
    config, settings = config_from_json(record["config"]), TrainSettings.from_json(record["learn"])
    assert config.fusion is not None, "a run without fusion"
    paths = [given.run / "features" / name for name in record["features"]]
    surveyed = survey(paths)
    bare = replace(settings, token_dropout=0.0, token_mask_rate=0.0)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        expanded = Path(folder) / "expanded"  # made by the first way, taken by the others
        single = [one_token(path, Path(folder)) for path in paths]
        ways: dict[str, tuple[list[Path], FusionConfig, TrainSettings]] = {
            name: (paths, replace(config.fusion, fusion=name), settings)
            for name in ("gated", "concat", "add", "cross_attention")
        }
        ways["gated, one token"] = (single, config.fusion, settings)
        ways["gated, unregularised"] = (paths, config.fusion, bare)
        for name, (features, fusion, trained_as) in ways.items():
            shaped = surveyed.fill(replace(config, fusion=fusion))
            measured_ways = measured(features, surveyed, expanded, shaped, trained_as)
            found[name] = measured_ways.pop("fusion")
            for way, figures in measured_ways.items():
                assert found.setdefault(way, figures) == figures, "the fusion moved a head"
            print(json.dumps({name: found[name]}), flush=True)
    summary = {**found, "seconds": round(time.perf_counter() - started, 1), "machine": machine()}
    tell_and_keep(summary, given.to)


def one_token(path: Path, folder: Path) -> Path:
    """The same shard with the mean of the tokens of each picture and caption in their place."""
    made = folder / path.name
    with webdataset.TarWriter(str(made)) as writer:
        for number, pair in enumerate(stream([path])):
            counts = pair.lengths.clamp(min=1, max=pair.words.shape[1])
            there = torch.arange(pair.words.shape[1])[None] < counts[:, None]
            words = (pair.words.float() * there[..., None]).sum(1, keepdim=True)
            single = replace(
                pair,
                patches=pair.patches.float().mean(0, keepdim=True).half(),
                words=(words / counts[:, None, None]).half(),
                lengths=torch.ones_like(pair.lengths),
            )
            writer.write({"__key__": f"{number:08d}", "safetensors": pack(single)})
    return made


def measured(
    paths: list[Path],
    surveyed: Statistics,
    expanded: Path,
    config: TwoTowerConfig,
    settings: TrainSettings,
) -> dict[str, dict[str, Any]]:
    """One way: figures of `image` and `mean`, and of the `fusion` of the same heads."""
    with tempfile.TemporaryDirectory() as folder:
        network = train.fit(
            paths, surveyed, config, settings, every_sample=False, expanded=expanded,
            checkpoint=Path(folder) / "state", device=torch.device("cpu"),
        )  # fmt: skip
    held_out = [pair for pair in stream(paths, expanded=expanded) if pair.held_out]
    weights, powers = [], []
    with torch.inference_mode():
        displayed = gallery(network, held_out)
        rows = displayed.rows.numpy()
        mean, ours = np.zeros((2, len(rows)), dtype=np.int64)
        for half in (0, 1):
            other = queries_of_half(displayed, 1 - half)
            select_power(network, other)
            weight, _ = best_mean(network, other)
            weights.append(weight)
            powers.append(network.config.hubness_power)
            for found, vectors in (
                (mean, displayed.mean(weight)),
                (ours, fused_vectors(network, held_out, displayed)),
            ):
                of_half = rows % 2 == half
                found[of_half] = ranks(displayed, network.reduce_hubness(vectors))[of_half]
        image = recalls_with_errors(ranks(displayed, displayed.image), rows)
    chosen = {"text_weights": weights, "hub_powers": powers, "queries": len(rows)}
    won = {
        "only_fusion": int(((ours < 1) & (mean >= 1)).sum()),
        "only_mean": int(((mean < 1) & (ours >= 1)).sum()),
    }
    return {
        "image": image,
        "mean": {**recalls_with_errors(mean, rows), **chosen},
        "fusion": {**recalls_with_errors(ours, rows), **won},
    }


if __name__ == "__main__":
    main()
