"""The set `photos` of benchmarks/index_data.py: photographs and captions by a two-tower model.

    python -m benchmarks.index_data photos --photos SHARD... --encoder two-tower:DIR

Rows are pictures, text queries all their captions; the last PICTURES photographs are picture
queries and no rows. `chiasm train two-tower` makes the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.index_data import REPORT, as_stored, save
from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Sample
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from tests.support.encoding import encode_images, encode_texts, preprocess

PICTURES = 500


def make_photos(folder: Path, shards: Sequence[str], model: str) -> None:
    """Read, encode, write."""
    encoder = load_encoder(model, EncoderSettings())
    read = ReadSettings(caption_field="captions")
    samples = [
        sample
        for shard in list_shards(list(shards), None)
        for sample in read_samples(shard, read)
        if isinstance(sample, Sample) and sample.picture
    ]
    side = encoder.modalities["image"].side
    pixels = [
        preprocess(encoder, decode(sample.picture, DecodeSettings(), side).image)
        for sample in samples
        if sample.picture
    ]
    pictures = encode_images(encoder, pixels)
    captions = sorted({caption for sample in samples for caption in sample.captions})
    np.random.default_rng(0).shuffle(captions)
    texts = encode_texts(encoder, captions)
    save(folder / "tq_learn.npy", texts[:-REPORT])
    save(folder / "tq_report.npy", texts[-REPORT:])
    save(folder / "iq.npy", pictures[-PICTURES:])
    save(folder / "xb.npy", as_stored(pictures[:-PICTURES]))
