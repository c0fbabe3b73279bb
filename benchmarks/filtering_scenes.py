"""Does leaving out what matching doubts help where a third of the captions are wrong? On scenes.

    python -m benchmarks.filtering_scenes --seed 0 1 2 --steps 200

Towers of the pocket's kind, smaller, learn from drawn pairs, a third of whose captions have changed
places with each other: from all of them; from those that `pocket` says match, as `chiasm filter`
leaves them; and, to see how much there is to gain, from those that are right. As many steps for
each, of the same pictures, by contrast and by what is in the pictures; nothing is told of which
captions are right. Recall of complete captions on a clean gallery of a fresh seed. Prints JSON and
writes benchmarks/results/filtering_scenes.json.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.machine import machine, tell_and_keep
from chiasm.pipeline.encoders import Matcher, load_encoder, require_matcher
from chiasm.pipeline.model.config import ImageConfig, ModelConfig, TextConfig
from chiasm.pipeline.model.inference import encode_images, encode_texts
from chiasm.pipeline.model.losses import attribute_loss, info_nce
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.words import LANGUAGES, plan, render_caption
from chiasm.pipeline.scenes.world import BACKGROUNDS, Scene
from chiasm.pipeline.training.pocket.data import DataSettings, learn_tokenizer, scenes_of
from chiasm.pipeline.training.pocket.evaluate import gallery_recall
from chiasm.pipeline.training.pocket.objective import Objective
from chiasm.pipeline.training.pocket.targets import scene_attributes
from tests.support.encoding import match_rows, preprocess

RESULT = Path(__file__).parent / "results" / "filtering_scenes.json"
WRONG = 1 / 3
SIDE, BATCH, RATE = 48, 128, 1e-3
WAYS = ("all", "filtered", "right ones")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--encoder", default="pocket")
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    started = time.perf_counter()
    judge = require_matcher(load_encoder(given.encoder, EncoderSettings()))
    tokenizer = learn_tokenizer(1024)
    found = {
        str(seed): {way: one(way, seed, given.steps, judge, tokenizer) for way in WAYS}
        for seed in given.seed
    }
    result = {
        "steps": given.steps, "batch": BATCH, "wrong": round(WRONG, 4), "seeds": found,
        "seconds": round(time.perf_counter() - started, 1), "machine": machine(),
    }  # fmt: skip
    tell_and_keep(result, given.to)


def one(way: str, seed: int, steps: int, judge: Matcher, tokenizer: Tokenizer) -> dict[str, Any]:
    """Learn from pairs chosen in one way; -> recall, and how the choice was."""
    config = ModelConfig(
        image=ImageConfig(side=SIDE, stem=(32, 48), width=96, depth=2, heads=3),
        text=TextConfig(vocabulary=len(tokenizer), width=96, depth=2, heads=3),
        dim=128,
        fusion=None,
    )
    torch.manual_seed(seed)
    objective = Objective(config)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    kept, kept_right = 0, 0
    for step in range(steps):
        scenes = scenes_of(step, DataSettings(seed=seed, batch=BATCH, side=SIDE))
        texts, right = noisy_captions(scenes, np.random.default_rng([seed, step]))
        rows = chosen(way, scenes, texts, right, judge)
        kept, kept_right = kept + len(rows), kept_right + int(right[rows].sum())
        loss = loss_of(objective, tokenizer, [scenes[i] for i in rows], [texts[i] for i in rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model = objective.model.eval()
    recall = gallery_recall(
        lambda images: encode_images(model, images),
        lambda said: encode_texts(model, tokenizer, said),
        1000,
        9001 + seed,
    )
    share, precision = kept / (steps * BATCH), kept_right / kept
    return {"kept": round(share, 4), "kept_right": round(precision, 4), **recall}


def noisy_captions(
    scenes: Sequence[Scene], rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """A caption of each scene, a third of them in each other's places; -> and which are right."""
    chance = random.Random(int(rng.integers(2**31)))
    texts = [
        render_caption(plan(scene, chance), chance, chance.choice(LANGUAGES)) for scene in scenes
    ]
    moved = rng.permutation(len(texts))[: round(WRONG * len(texts))]
    right = np.ones(len(texts), dtype=bool)
    right[moved] = False
    mixed = list(texts)
    for here, there in zip(moved, np.roll(moved, 1), strict=True):
        mixed[here] = texts[there]
    return mixed, right


def chosen(
    way: str, scenes: Sequence[Scene], texts: list[str], right: np.ndarray, judge: Matcher
) -> np.ndarray:
    """Rows to learn from."""
    if way == "all":
        return np.arange(len(texts))
    if way == "right ones":
        return np.flatnonzero(right)
    pixels = [preprocess(judge, picture(scene)) for scene in scenes]
    return np.flatnonzero(match_rows(judge, pixels, texts) >= 0)


def loss_of(
    objective: Objective, tokenizer: Tokenizer, scenes: Sequence[Scene], texts: Sequence[str]
) -> torch.Tensor:
    """Contrast of the pairs, and what the patches tell of the pictures."""
    model = objective.model
    pixels = np.stack([to_pixels(picture(scene), SIDE) for scene in scenes])
    image = model.image_modality(torch.from_numpy(pixels))
    text = model.text_modality(torch.from_numpy(tokenizer.batch(list(texts), 64)))
    none = torch.zeros(len(texts), len(texts), dtype=torch.bool)
    places, background = objective.probes(image.tokens)
    facts = torch.from_numpy(np.stack([scene_attributes(scene) for scene in scenes]))
    stage = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
    attribute_term = attribute_loss(places, facts) + functional.cross_entropy(
        background.float(), stage
    )
    return info_nce(image.vector, text.vector, model.scale, none) + 0.5 * attribute_term


if __name__ == "__main__":
    main()
