"""Does leaving out what matching doubts help where a third of the captions are wrong?

    python -m benchmarks.filtering RUN --measured DEV_RUN --seed 0 1 2

RUN and DEV_RUN are folders of `chiasm train two-tower` over photographs with several
captions: their cached features are taken, so that towers run once for all of it. For each seed a
third of all captions of RUN change places among the pictures, held-out ones too. A model learns
from that, scores every caption with its picture as `chiasm filter` does, and the lowest third is
left out; another model learns from what stays. Pictures are scored by one look, for a run keeps
the features of a closer one of samples held out only. Both models are measured on the
clean pictures of DEV_RUN: R@1 and R@10 of pictures alone and of the even mean with the first
caption, by all other captions.

Told beside: of the captions left out, how many were wrong (precision), and of the wrong ones, how
many were left out (recall). Prints JSON and writes benchmarks/results/filtering.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

from benchmarks.machine import machine, tell_and_keep
from chiasm.pipeline.training.paired import recalls_with_errors
from chiasm.pipeline.training.two_tower import loop as train
from chiasm.pipeline.training.two_tower.closed_form import fit_match_weights
from chiasm.pipeline.training.two_tower.prepare import survey
from chiasm.pipeline.training.two_tower.select import gallery, ranks
from chiasm.pipeline.training.two_tower.stream import Pair, images_of, pack, stream
from chiasm.pipeline.training.two_tower.trainer import TrainSettings
from chiasm.pipeline.two_tower.checkpoint import config_from_json
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

RESULT = Path(__file__).parent / "results" / "filtering.json"
WRONG = 1 / 3
CPU = torch.device("cpu")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--measured", type=Path, required=True)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=TrainSettings.steps)
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    started = time.perf_counter()
    record = json.loads((given.run / "settings.json").read_text())
    # No fusion: what a filter does to heads, kernel and evidence is asked here.
    config = replace(config_from_json(record["config"]), fusion=None)
    pairs = list(stream([given.run / "features" / name for name in record["features"]]))
    measured_on = json.loads((given.measured / "settings.json").read_text())["features"]
    clean = list(stream([given.measured / "features" / name for name in measured_on]))
    found = [one(seed, config, pairs, clean, given.steps) for seed in given.seed]
    summary = {
        "pairs": len(pairs), "measured_on": len(clean), "wrong": round(WRONG, 4),
        "seeds": dict(zip(map(str, given.seed), found, strict=True)),
        "seconds": round(time.perf_counter() - started, 1), "machine": machine(),
    }  # fmt: skip
    tell_and_keep(summary, given.to)


def one(
    seed: int, config: TwoTowerConfig, pairs: list[Pair], clean: list[Pair], steps: int
) -> dict[str, Any]:
    """One seed: without a filter, and with it."""
    settings = replace(TrainSettings(), seed=seed, steps=steps)
    noisy, wrong = shuffled(pairs, seed)
    first = learned(noisy, config, settings)
    logits = scores(first, noisy)
    threshold = np.quantile(np.concatenate(logits), WRONG)
    doubted = [each < threshold for each in logits]
    kept = [keep(pair, ~bad) for pair, bad in zip(noisy, doubted, strict=True) if not bad.all()]
    second = learned(kept, config, settings)
    out, was = np.concatenate(doubted), np.concatenate(wrong)
    return {
        "precision": round(float(was[out].mean()), 4),
        "recall": round(float(out[was].mean()), 4),
        "without": measured(first, clean),
        "filtered": measured(second, clean),
    }


def shuffled(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[np.ndarray]]:
    """A third of all captions in each other's places; -> and which ones are wrong now."""
    rng = np.random.default_rng(seed)
    places = [(row, c) for row, pair in enumerate(pairs) for c in range(len(pair.text))]
    moved = [places[i] for i in rng.permutation(len(places))[: round(WRONG * len(places))]]
    comes_from = dict(zip(moved, moved[1:] + moved[:1], strict=True))
    noisy, wrong = [], []
    for row, pair in enumerate(pairs):
        sources = [comes_from.get((row, c), (row, c)) for c in range(len(pair.text))]
        longest = max(pairs[r].words.shape[1] for r, _ in sources)
        words = torch.zeros(len(sources), longest, pair.words.shape[-1], dtype=pair.words.dtype)
        for place, (r, c) in enumerate(sources):
            words[place, : pairs[r].words.shape[1]] = pairs[r].words[c]
        noisy.append(
            replace(
                pair,
                text=torch.stack([pairs[r].text[c] for r, c in sources]),
                words=words,
                lengths=torch.stack([pairs[r].lengths[c] for r, c in sources]),
                ids=[pairs[r].ids[c] for r, c in sources],
            )
        )
        wrong.append(np.array([r != row for r, _ in sources]))
    return noisy, wrong


def keep(pair: Pair, kept: np.ndarray) -> Pair:
    """The pair with some of its captions."""
    rows = torch.from_numpy(np.flatnonzero(kept))
    return replace(
        pair,
        text=pair.text[rows],
        words=pair.words[rows],
        lengths=pair.lengths[rows],
        ids=[pair.ids[i] for i in rows.tolist()],
    )


def learned(
    pairs: Sequence[Pair], config: TwoTowerConfig, settings: TrainSettings
) -> TwoTowerNetwork:
    """Learned and solved from these pairs, as the preset does before it judges."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.tar"
        with webdataset.TarWriter(str(path)) as writer:
            for number, pair in enumerate(pairs):
                writer.write({"__key__": f"{number:08d}", "safetensors": pack(pair)})
        surveyed, expanded = survey([path]), Path(folder) / "expanded"
        network = train.fit(
            [path], surveyed, surveyed.fill(config), settings, every_sample=False,
            expanded=expanded, checkpoint=Path(folder) / "state", device=CPU,
        )  # fmt: skip
        held_out = [pair for pair in stream([path], expanded=expanded) if pair.held_out]
    fit_match_weights(network, held_out)
    return network


@torch.inference_mode()
def scores(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> list[np.ndarray]:
    """The log odds of every caption with its picture, as `match_pairs` has them but for the closer
    look."""
    found = []
    for at in range(0, len(pairs), 256):
        block = pairs[at : at + 256]
        seen = network.image_evidence(images_of(block))
        for row, pair in enumerate(block):
            bags, alone = network.bag_of_words(pair.ids), torch.tensor([row])
            texts = network.text_vectors(pair.text.float(), bags)
            traits = network.match_features(texts, bags, seen[alone])
            found.append(network.match_logits(traits)[:, 0].numpy())
    return found


@torch.inference_mode()
def measured(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Recall on clean pairs, with standard errors, of pictures alone and of the even mean."""
    expanded = [
        replace(pair, text=network.expansion(pair.text.float(), network.bag_of_words(pair.ids)))
        for pair in pairs
    ]
    displayed = gallery(network, expanded)
    mean = torch.nn.functional.normalize(displayed.image + displayed.text, dim=-1)
    rows = displayed.rows.numpy()
    return {
        "image": recalls_with_errors(ranks(displayed, displayed.image), rows),
        "mean": recalls_with_errors(ranks(displayed, mean), rows),
    }


if __name__ == "__main__":
    main()
