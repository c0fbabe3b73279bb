"""`st:ID_OR_DIR` as a matcher: any CrossEncoder of sentence-transformers that scores words with
pictures, such as Qwen3-VL-Reranker and jina-reranker-m0. No code of a model's own is run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import CrossEncoder

from chiasm.pipeline.encoders.base import image_and_text, require_modality
from chiasm.pipeline.encoders.probe import probe_matcher
from chiasm.pipeline.encoders.protocols import Array, Input
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import ModelFolder
from chiasm.pipeline.pretrained.sentence_costs import picture_cost
from chiasm.pipeline.pretrained.sentence_models import (
    MAX_PIXELS,
    downscaled,
    load_network,
    replace_surrogates,
)
from chiasm.pipeline.records import IMAGE, TEXT

BATCH_BYTES = 4 << 30  # of the forward pass of pairs at once, by `cost`
BATCH = 64  # pairs at once at most


@functools.cache
def load(model: str, settings: EncoderSettings) -> CrossEncoderMatcher:
    """The CrossEncoder of a folder or a hub id, kept for the next query; raises EncoderError or
    UsageError, in one line."""
    folder, network, precision, device = load_network(CrossEncoder, model, settings, use="reranker")
    if not network.supports("image"):
        raise EncoderError(
            folder.title,
            expected="a CrossEncoder for pictures",
            found="one for " + ", ".join(map(str, network.modalities)),
            do="take one for both, such as st:Qwen/Qwen3-VL-Reranker-2B",
        )
    matcher = CrossEncoderMatcher(folder, network, precision, device)
    probe_matcher(matcher)
    return matcher


class CrossEncoderMatcher:
    """See the protocol `chiasm.pipeline.encoders.Matcher`; its scores are in the model's own
    scale, higher is nearer. precision and device: as of an encoder."""

    def __init__(
        self, folder: ModelFolder, network: CrossEncoder, precision: str, device: torch.device
    ) -> None:
        self.name = folder.name
        self.precision, self.device = precision, str(device)
        self.fingerprint = folder.fingerprint({"largest": MAX_PIXELS})
        self.modalities = {IMAGE: Input(), TEXT: Input()}
        self._network = network
        self._picture_cost = picture_cost(
            lambda picture: network.preprocess([({TEXT: "a"}, {IMAGE: picture})]),
            getattr(network[0], "config", None),
            next(network.parameters()).dtype,
        )

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> the same, downscaled to at most MAX_PIXELS pixels. A text
        stays as it is."""
        require_modality(self, modality)
        return raw if modality == TEXT else downscaled(raw)

    def cost(self, modality: str, item: Any) -> int:
        """Of a pair's picture by its pixels. A text's tokens are few beside those of pictures."""
        if modality == IMAGE:
            return item.nbytes + self._picture_cost(item.shape[0] * item.shape[1])
        return 4 * len(item)

    def match(
        self, a: tuple[str, Sequence[Any]], b: tuple[str, Sequence[Any]], pairs: Array
    ) -> Array:
        """Pictures and texts, pairs (P, 2) of their indices -> (P,) float32."""
        pixels, texts, pairs = image_and_text(self, a, b, pairs)
        # Named by modality, as in `st:` encoders: a bare text could be read as a picture's address.
        pictures = {i: {"image": Image.fromarray(pixels[i])} for i in set(pairs[:, 0].tolist())}
        scores = [np.zeros(0, np.float32)]
        for some in self._batches([pixels[i] for i in pairs[:, 0].tolist()]):
            inputs = [
                ({"text": replace_surrogates(texts[j])}, pictures[i])
                for i, j in pairs[some].tolist()
            ]
            made = self._network.predict(inputs, batch_size=len(inputs), show_progress_bar=False)
            scores.append(np.asarray(made, dtype=np.float32).reshape(-1))
        return np.concatenate(scores)

    def _batches(self, pictures: Sequence[Array]) -> Iterator[slice]:
        """Pairs in their order, so many at once as fit; pictures: that of each pair."""
        start, total = 0, 0
        for at, picture in enumerate(pictures):
            cost = self.cost(IMAGE, picture)
            if at > start and (at - start == BATCH or total + cost > BATCH_BYTES):
                yield slice(start, at)
                start, total = at, 0
            total += cost
        if pictures:
            yield slice(start, len(pictures))
