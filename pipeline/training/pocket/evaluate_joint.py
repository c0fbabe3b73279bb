"""What a joint vector is worth, on galleries of fresh seeds, for any encoder: R@1 and R@10 of the
picture, the caption, the best weighted mean of both and the joint vector, each with its standard
error, and the joint vector against that mean query by query.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from chiasm.pipeline.encoders import Encoder
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.world import gallery
from chiasm.pipeline.training.paired import format_share, mcnemar, share
from chiasm.pipeline.training.pocket.joint_task import (
    JointTask,
    JointVectors,
    best_text_weight,
    joint_task,
    right_hits,
)

TUNING_SEEDS = (271, 272)  # of the galleries that choose the weight of the mean: never measured on


def joint(encoder: Encoder, seeds: Sequence[int], samples: int) -> dict[str, Any]:
    """Over galleries of `samples` scenes each: {"image": {"r1", "r1_error", "r10", "r10_error"},
    "text", "mean", "fusion": ..., "text_weight" of the mean, "only_fusion", "only_mean": queries
    whose first hit is right by one alone, "p": of McNemar's test, one-sided}.

    ValueError where a seed is one of TUNING_SEEDS.
    """
    if set(seeds) & set(TUNING_SEEDS):
        raise ValueError(f"seeds {list(seeds)}: expected none of {TUNING_SEEDS}, which choose")
    weight = best_text_weight([_gallery(encoder, seed, samples) for seed in TUNING_SEEDS])
    right: dict[str, list[np.ndarray]] = {}
    for task, vectors in (_gallery(encoder, seed, samples) for seed in seeds):
        ways = {
            "image": vectors.image,
            "text": vectors.text,
            "mean": vectors.mean(weight),
            "fusion": vectors.joint,
        }
        for name, indexed in ways.items():
            right.setdefault(name, []).append(right_hits(vectors.queries, indexed, task.true))
    whole = {name: np.concatenate(found) for name, found in right.items()}
    won, losses, p = mcnemar(whole["fusion"][:, 0], whole["mean"][:, 0])
    return {
        **{name: _figures(found) for name, found in whole.items()},
        "text_weight": weight,
        "only_fusion": won,
        "only_mean": losses,
        "p": p,
    }


def format_joint(found: dict[str, Any]) -> list[str]:
    """The figures of `joint` in lines for a person."""
    names = {"image": "picture", "text": "caption", "mean": "mean", "fusion": "joint vector"}
    lines = ["partial captions, R@1 and R@10 with standard errors, of"]
    for way, name in names.items():
        of = f"{name}, {found['text_weight']:g} of the caption" if way == "mean" else name
        r1, e1, r10, e10 = (found[way][key] for key in ("r1", "r1_error", "r10", "r10_error"))
        lines.append(f"  {of:<28}{format_share(r1, e1)}  {format_share(r10, e10)}")
    lines.append(
        f"first by the joint vector alone {found['only_fusion']}, by the mean alone "
        f"{found['only_mean']}: p = {found['p']:.1g}"
    )
    return lines


def _gallery(encoder: Encoder, seed: int, samples: int) -> tuple[JointTask, JointVectors]:
    task = joint_task(gallery(samples, seed), random.Random(f"joint {seed}"))
    pixels = [encoder.preprocess(IMAGE, np.asarray(picture(scene))) for scene in task.scenes]
    image, text = encoder.encode(IMAGE, pixels), encoder.encode(TEXT, task.captions)
    return task, JointVectors(
        image=image.vectors,
        text=text.vectors,
        joint=encoder.encode_joint({IMAGE: image, TEXT: text}),
        queries=encoder.encode(TEXT, task.queries).vectors,
    )


def _figures(right: np.ndarray) -> dict[str, float]:
    """R@1 and R@10 of hits (Q, 10) bool, with standard errors; each query is of a picture of its
    own."""
    found = {}
    for name, answered in (("r1", right[:, 0]), ("r10", right.any(axis=1))):
        found[name], found[f"{name}_error"] = share(np.asarray(answered), np.arange(len(right)))
    return found
