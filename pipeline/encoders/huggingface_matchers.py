"""BLIP and BLIP-2 for retrieval: models that score a text with a picture by reading both together.

A picture's vision pass is made once, however many pairs it is in; a text is read with each of its
pictures, since its layers attend to them. The head gives two logits, of which the score is
    log odds = logit of a match - logit of none      (Li et al., BLIP, 2022; BLIP-2, 2023)
A BLIP is an encoder too: its two towers were trained by contrast. A BLIP-2 gives a picture as many
vectors as it has queries, so that it matches alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.encoders.base import BaseEncoder, image_and_text, require_modality
from chiasm.pipeline.encoders.huggingface_encoder import HuggingFaceEncoder, Parts
from chiasm.pipeline.encoders.protocols import Array, Input
from chiasm.pipeline.records import IMAGE, TEXT

# Pictures whose states are kept at once, and pairs read at once: of a ViT-L at 384 px in float32 a
# picture's states are 2.4 MB, and a layer of 32 pairs makes a few copies of them.
PICTURES = PAIRS = 32


class BlipEncoder(HuggingFaceEncoder):
    """Both protocols, `Encoder` and `Matcher`, by a BlipForImageTextRetrieval."""

    def image_features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The projection of the first patch, as its contrast reads it: (B, D)."""
        return self._network.vision_proj(
            self._network.vision_model(**inputs).last_hidden_state[:, 0]
        )

    def text_features(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """The projection of the first token, read without a picture: (B, D)."""
        return self._network.text_proj(self._network.text_encoder(**tokens).last_hidden_state[:, 0])

    @torch.inference_mode()
    def match(
        self, a: tuple[str, Sequence[Any]], b: tuple[str, Sequence[Any]], pairs: Array
    ) -> Array:
        """Outputs of `preprocess` of pictures and of texts, pairs (P, 2) of their indices -> (P,)
        float32, the log odds that the text is true of the picture."""
        pixels, texts, pairs = image_and_text(self, a, b, pairs)
        return _match(self._parts, _blip_logits, pixels, texts, pairs)


class Blip2Matcher:
    """See the protocol `chiasm.pipeline.encoders.Matcher`; by a Blip2ForImageTextRetrieval."""

    def __init__(self, parts: Parts) -> None:
        self.name = parts.folder.name
        self.fingerprint = parts.folder.fingerprint(parts.preprocessing)
        self.modalities = {IMAGE: Input(side=parts.pixels.side), TEXT: Input()}
        self.precision = parts.precision
        self.device = str(parts.device)
        self._parts = parts

    cost = BaseEncoder.cost

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> uint8 (3, S, S). A text stays as it is."""
        require_modality(self, modality)
        return self._parts.preprocess(modality, raw)

    @torch.inference_mode()
    def match(
        self, a: tuple[str, Sequence[Any]], b: tuple[str, Sequence[Any]], pairs: Array
    ) -> Array:
        """As BlipEncoder.match."""
        pixels, texts, pairs = image_and_text(self, a, b, pairs)
        return _match(self._parts, _blip2_logits, pixels, texts, pairs)


def _match(
    parts: Parts, logits: Any, pixels: Sequence[Any], texts: Sequence[str], pairs: Array
) -> Array:
    """(P,) float32. Pairs are read in the order of their pictures, of which PICTURES are in memory;
    logits: (network, states (B, S, D), tokens of B texts) -> (B, 2)."""
    scores = np.zeros(len(pairs), np.float32)
    order = np.argsort(pairs[:, 0], kind="stable")
    pictures, places = np.unique(pairs[order, 0], return_inverse=True)
    for first in range(0, len(pictures), PICTURES):
        some = pictures[first : first + PICTURES]
        inputs = parts.image_inputs([pixels[number] for number in some])
        states = parts.network.vision_model(**inputs).last_hidden_state
        there = np.flatnonzero((places >= first) & (places < first + PICTURES))
        for start in range(0, len(there), PAIRS):
            block = there[start : start + PAIRS]
            tokens, _ = parts.text_inputs([texts[pairs[order[at], 1]] for at in block])
            found = logits(parts.network, states[places[block] - first], tokens).float()
            scores[order[block]] = (found[:, 1] - found[:, 0]).cpu().numpy()
    return scores


def _blip_logits(network: Any, states: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
    read = network.text_encoder(
        **tokens,
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
    )
    return network.itm_head(read.last_hidden_state[:, 0])


def _blip2_logits(network: Any, states: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
    queries = network.query_tokens.expand(len(states), -1, -1)
    count = queries.shape[1]
    mask = tokens["attention_mask"]
    read = network.qformer(
        query_embeds=network.embeddings(input_ids=tokens["input_ids"], query_embeds=queries),
        query_length=count,
        attention_mask=torch.cat([mask.new_ones(len(states), count), mask], dim=1),
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
    )
    seen = read.last_hidden_state[:, :count].to(network.itm_head.weight.dtype)
    return network.itm_head(seen).mean(dim=1)
