"""What each piece of a two-tower model is worth: five folds by picture, each piece left out or put
back, with two text towers.

    python -m benchmarks.two_tower_pieces SHARD... --image-encoder DIR --text-encoder DIR --folder F

Photographs with several captions. Features are computed once into F (`photo_features.py`). The
second text tower is a bag of words, weighted by idf, and its singular vectors, both fitted on the
pictures of the fold that are learned from (Deerwester et al., Indexing by Latent Semantic Analysis,
1990). Every (tower, fold, variant) becomes a line of F/pieces.jsonl and is not measured again; a
training goes on from its checkpoint.

Of the pictures held out, how many queries find theirs first: `joint`, pictures with first captions
by the other captions, hubness power (and the weight of `best weighted mean`) selected on one half
of the pictures and measured on the other; `picture`, pictures alone by all captions; `matched`,
the first 20 of these matched again, by weights fitted on the other half. Prints base minus variant
in points, with the standard error over pictures, and writes
benchmarks/results/two_tower_pieces.json.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds
from torch import Tensor

from benchmarks.machine import machine, table, tell_and_keep
from benchmarks.photo_features import Photo, compute, photos
from benchmarks.two_tower_variants import CPU, JOINT, METRICS, UNTRAINED, Fold, no_change, patched
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.training.two_tower import loop
from chiasm.pipeline.training.two_tower.held_out import FOLDS as EXPANSION_FOLDS
from chiasm.pipeline.training.two_tower.prepare import survey
from chiasm.pipeline.training.two_tower.stream import Pair, merge_copies, pack, stream
from chiasm.pipeline.training.two_tower.trainer import TrainSettings
from chiasm.pipeline.two_tower import expansion
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

RESULT = Path(__file__).parent / "results" / "two_tower_pieces.json"
FOLDS = 5
SVD_WIDTH = 256


def main() -> None:
    """Measure what is not measured yet, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--image-encoder", required=True)
    parser.add_argument("--text-encoder", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--towers", nargs="+", default=["sentences", "bag_of_words"])
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--trainings", nargs="+", default=list(TRAININGS))
    parser.add_argument("--steps", type=int, default=TrainSettings.steps)
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shards = list_shards(given.shards, None)
    settings = EncoderSettings("float32", "cpu", 1)
    features = given.folder / "features"
    if not all((features / f"{shard.id}.safetensors").exists() for shard in shards):
        towers = ImageTower(given.image_encoder, settings), TextTower(given.text_encoder, settings)
        compute(shards, *towers, features)
    found = list(photos(shards, features))
    lines = given.folder / "pieces.jsonl"
    for fold in given.folds:
        for tower in given.towers:
            measure_fold(found, tower, fold, given.trainings, given.steps, lines)
    tell_and_keep(
        {"pictures": len(found), "steps": given.steps, **summary(lines), "machine": machine()},
        given.to,
    )


def measure_fold(
    found: list[Photo], tower: str, fold: int, trainings: Sequence[str], steps: int, lines: Path
) -> None:
    """Lines of one fold and text tower that are not there yet."""
    done = {key_of(line) for line in read(lines)}
    folder = lines.parent / f"{tower}-{fold}"
    for training in trainings:
        variants = UNTRAINED if training == "base" else {training: (no_change, JOINT)}
        missing = [name for name in variants if (tower, fold, name) not in done]
        if not missing:
            continue
        started = time.perf_counter()
        fitted = fit(found, tower, fold, training, steps, folder)
        print(f"{tower} {fold} {training}: {time.perf_counter() - started:.0f} s", flush=True)
        for name in missing:
            change, metrics = variants[name]
            with change(fitted) as changed:
                right = {metric: METRICS[metric](changed) for metric in metrics}
            line = {"tower": tower, "fold": fold, "variant": name, "right": right}
            line["format"] = TwoTowerNetwork.format
            with lines.open("a") as file:
                file.write(json.dumps(line) + "\n")
        shutil.rmtree(folder)


def fit(found: list[Photo], tower: str, fold: int, training: str, steps: int, folder: Path) -> Fold:
    """A network learned from the other folds, from where it was."""
    path, work = folder / "pairs.tar", folder / training
    work.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for number, pair in enumerate(pairs_of(found, tower, fold)):
            writer.write({"__key__": f"{number:08d}", "safetensors": pack(pair)})
    first = next(stream([path]))
    config = TwoTowerConfig(
        "image", "", tower, "", image_width=len(first.image), patch_width=1,
        text_width=first.text.shape[1], word_width=1,
    )  # fmt: skip
    statistics = survey([path])
    config = statistics.fill(config)
    changed, patches = TRAININGS[training]
    settings = replace(TrainSettings(steps=steps, fusion_steps=0), **changed)
    if training == "no expansion":
        config = replace(config, text_landmarks=0)
    with patched(expansion, **patches):
        network = loop.fit(
            [path], statistics, config, settings, every_sample=False, expanded=work / "expanded",
            checkpoint=work / "state", device=CPU,
        )  # fmt: skip
    pairs = stream([path], expanded=work / "expanded")
    return Fold(network, merge_copies(pair for pair in pairs if pair.held_out))


def pairs_of(found: list[Photo], tower: str, fold: int) -> Iterator[Pair]:
    """The photographs as a training takes them, one fold held out."""
    of_fold = [photo.digest % FOLDS == fold for photo in found]
    texts, ids = [photo.text for photo in found], [photo.ids for photo in found]
    if tower == "bag_of_words":
        texts, ids = bag_and_svd([p.captions for p in found], np.logical_not(of_fold))
    for photo, held_out, text, own in zip(found, of_fold, texts, ids, strict=True):
        yield Pair(
            image=photo.image, patches=torch.zeros(0, 1), text=text,
            words=torch.zeros(len(text), 0, 1), lengths=torch.zeros(len(text), dtype=torch.int64),
            ids=own, picture=photo.digest, fold=photo.digest // FOLDS % EXPANSION_FOLDS,
            augmented=photo.augmented if held_out else None,
        )  # fmt: skip


def bag_and_svd(
    captions: Sequence[Sequence[str]], learned: np.ndarray
) -> tuple[list[Tensor], list[list[list[int]]]]:
    """Of each picture its captions' vectors (C, SVD_WIDTH) and word ids; idf and singular vectors
    of the pictures that are learned from."""
    words = [[re.findall(r"\w+", text.lower()) for text in own] for own in captions]
    of_learned = [set(text) for own, yes in zip(words, learned, strict=True) if yes for text in own]
    counts = Counter(word for text in of_learned for word in text)
    column = {word: i for i, (word, n) in enumerate(counts.most_common()) if n > 1}
    idf = np.log(len(of_learned) / np.array([counts[word] for word in column]))
    ids = [[sorted({column[w] for w in text if w in column}) for text in own] for own in words]
    flat = [text for own in ids for text in own]
    ends = np.cumsum([0, *map(len, flat)])
    values = np.concatenate(
        [idf[text] / max(1e-9, float(np.linalg.norm(idf[text]))) for text in flat if text]
    )
    bags = csr_matrix((values, [i for t in flat for i in t], ends), (len(flat), len(column)))
    rows = np.repeat(learned, [len(own) for own in captions])
    _, _, vectors = svds(bags[rows], k=SVD_WIDTH, random_state=0)
    projected = torch.from_numpy((bags @ vectors.T).astype(np.float32))
    return list(projected.split([len(own) for own in captions])), ids


# Variants with a training of their own: changed settings, changed constants of `expansion.py`.
TRAININGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "no expansion": ({}, {}),
    "expansion by kernel alone": ({}, {"WORD_WEIGHT": 0.0}),
    "expansion by words alone": ({}, {"KERNEL_WEIGHT": 0.0}),
    "no loss between captions": ({"to_text": 0.0}, {}),
    "no loss of the mean": ({"to_mean": 0.0}, {}),
}


def read(lines: Path) -> list[dict[str, Any]]:
    """What is measured already; AssertionError for lines of another format."""
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    assert all(line.get("format") == TwoTowerNetwork.format for line in found), f"{lines} is older"
    return found


def key_of(line: dict[str, Any]) -> tuple[str, int, str]:
    return line["tower"], line["fold"], line["variant"]


def summary(lines: Path) -> dict[str, Any]:
    """Base minus variant in points, over the folds that both have, and its standard error; prints
    it as a table."""
    measured = {key_of(line): line["right"] for line in read(lines)}
    variants = dict.fromkeys((tower, name) for tower, _, name in measured)
    found: dict[str, Any] = {}
    for tower, name in variants:
        folds = [
            f for t, f, v in measured if (t, v) == (tower, name) and (t, f, "base") in measured
        ]
        for metric in measured[tower, folds[0], name] if folds else ():
            base, other = (
                np.array([int(c) for f in folds for c in measured[tower, f, kind][metric]])
                for kind in ("base", name)
            )
            queries = len(base) * (4 if metric == "joint" else 5)
            gained = base - other
            error, of_r1 = (
                float(np.sqrt(np.square(each - each.mean()).sum())) for each in (gained, other)
            )
            found.setdefault(tower, {}).setdefault(name, {})[metric] = {
                "r1": round(float(other.sum()) / queries, 4),
                "r1_error": round(of_r1 / queries, 4),
                "worth": round(100 * float(gained.sum()) / queries, 2),
                "error": round(100 * error / queries, 2),
                "folds": len(folds),
            }
    rows = [
        (tower, name, metric, *figures.values())
        for tower, named in found.items()
        for name, metrics in named.items()
        for metric, figures in metrics.items()
    ]
    head = ("tower", "variant", "metric", "R@1", "its error", "worth", "error", "folds")
    print(table(head, rows), flush=True)
    return {"worth": found}


if __name__ == "__main__":
    main()
