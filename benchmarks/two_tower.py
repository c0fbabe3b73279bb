"""What a two-tower model is worth on photographs that it did not learn from.

    python -m benchmarks.two_tower --encoder two-tower:DIR SHARD...

Pictures with several captions. In the index: the picture, its first caption, their even mean, their
best weighted mean (of the queries of each half of the pictures by the weight that is best on the
other half), the model's joint vector. Asked by: all other captions. Exact search, R@1, R@5, R@10
with standard errors over pictures, and by how much the joint vector is above picture and mean; and
pictures alone once more with the first 20 of each answer scored again by matching (logit plus
cosine, as `chiasm search --rerank match:20`). Prints JSON and writes
benchmarks/results/two_tower.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, tell_and_keep
from chiasm.pipeline.encoders import Matcher, load_encoder, require_matcher
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.metrics import ranks_of, reordered, right_at, top_k
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import IMAGE, TEXT, Sample
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from chiasm.pipeline.training.paired import (
    TEXT_WEIGHTS,
    cross_fitted,
    named_share,
    recalls_with_errors,
)
from tests.support.encoding import (
    encode_images,
    encode_joint,
    encode_texts,
    mean_of,
    preprocess,
)

RESULT = Path(__file__).parent / "results" / "two_tower.json"
RERANKED = 20


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--caption-field", default="captions")
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    started = time.perf_counter()
    encoder = require_matcher(load_encoder(given.encoder, EncoderSettings()))
    read = ReadSettings(caption_field=given.caption_field)
    samples = [
        sample
        for shard in list_shards(given.shards, None)
        for sample in read_samples(shard, read)
        if isinstance(sample, Sample) and sample.picture and len(sample.captions) > 1
    ]
    found = {
        "joint_is": encoder.preprocessing["joint"],
        "hubs": encoder.preprocessing["hubs"],
        "pictures": len(samples),
        **measure(encoder, samples),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }
    tell_and_keep(found, given.to)


def measure(encoder: Matcher, samples: list[Sample]) -> dict[str, Any]:
    """Every figure, of one gallery."""
    pixels = [
        preprocess(
            encoder, decode(s.picture, DecodeSettings(), encoder.modalities["image"].side).image
        )
        for s in samples
        if s.picture
    ]
    first = [s.captions[0] for s in samples]
    queries = [caption for s in samples for caption in s.captions[1:]]
    own = np.repeat(np.arange(len(samples)), [len(s.captions) - 1 for s in samples])
    image, text = encode_images(encoder, pixels), encode_texts(encoder, first)
    query_vectors = encode_texts(encoder, queries)
    joint = encode_joint(encoder, pixels, first)
    indexed = {"image": image, "caption": text, "even_mean": mean_of(image, text), "joint": joint}
    ranks = {name: ranks_of(query_vectors @ rows.T, own) for name, rows in indexed.items()}
    means = (mean_of((1 - weight) * image, weight * text) for weight in TEXT_WEIGHTS)
    of_means = np.stack([ranks_of(query_vectors @ rows.T, own) for rows in means])
    ranks["mean"], ways = cross_fitted(of_means, own)
    found: dict[str, Any] = {"queries": len(queries)}
    found |= {name: recalls_with_errors(of_way, own) for name, of_way in ranks.items()}
    found["mean"]["text_weights"] = [TEXT_WEIGHTS[way] for way in ways]
    first_by = {name: (of_way < 1).astype(float) for name, of_way in ranks.items()}
    for name in ("image", "mean"):
        above = first_by["joint"] - first_by[name]
        found["joint"] |= named_share(f"r1_above_{name}", above, own)
    found["image_matched"] = matched(encoder, query_vectors @ image.T, own, pixels, queries)
    return found


def matched(
    encoder: Matcher,
    scores: np.ndarray,
    own: np.ndarray,
    pixels: list[np.ndarray],
    texts: list[str],
) -> dict[str, float]:
    """R@1 after the first RERANKED of each query were scored again."""
    order = top_k(scores, RERANKED)
    pairs = np.stack([order.ravel(), np.repeat(np.arange(len(texts)), order.shape[1])], axis=1)
    logits = encoder.match((IMAGE, pixels), (TEXT, texts), pairs).reshape(order.shape)
    final = logits + np.take_along_axis(scores, order, 1)
    right = right_at(reordered(order, final), np.arange(len(pixels)) == own[:, None], 1)
    return named_share("r1", right[:, 0], own)


if __name__ == "__main__":
    main()
