"""The joint model: two towers, a fusion of their tokens, matching on what is fused, a decoder of
both, and the codes that it draws pictures by."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.decoder import Decoder
from chiasm.pipeline.model.fusion import Fused, Fusion, Modality
from chiasm.pipeline.model.image_tokens import ImageTokens
from chiasm.pipeline.model.matching import Match, Matching
from chiasm.pipeline.model.towers import PAD, DualEncoder, initialise


class JointNetwork(DualEncoder):
    """Pictures and texts -> unit vectors; pairs of them -> joint vectors and matches.

    Without the other parts of the config it is a `DualEncoder` and no more. `fusion` takes
    [text, image]; `image_tokens` are the codes that `decoder` writes to draw.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.fusion: Fusion | None = None
        self.matching: Matching | None = None
        if config.fusion is not None:
            widths = (config.text.width, config.image.width)
            # Its own random state: the towers start with the same weights whatever the fusion is.
            with torch.random.fork_rng(devices=[]):
                self.fusion = Fusion(config.fusion, widths, config.dim)
                self.matching = Matching(config.fusion.width)
                self.fusion.reset_parameters()
                self.matching.apply(initialise)
        self.decoder: Decoder | None = None
        if config.decoder is not None:
            with torch.random.fork_rng(devices=[]):
                of_source = config.text.width
                if config.decoder.reads_fused and config.fusion is not None:
                    of_source += config.fusion.width
                widths = (of_source, config.image.width)
                vocabulary, patches = config.text.vocabulary, config.image.patches
                self.decoder = Decoder(
                    config.decoder, widths, vocabulary, config.image_tokens, patches
                )
                self.decoder.reset_parameters()
        self.image_tokens: ImageTokens | None = None
        if config.image_tokens is not None:
            with torch.random.fork_rng(devices=[]):
                self.image_tokens = ImageTokens(config.image_tokens)

    def image_modality(self, pixels: Tensor) -> Modality:
        """pixels uint8 (B, 3, S, S) -> N tokens each, none masked."""
        tokens, vector = self.encode_image(pixels)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Modality(tokens, mask, vector)

    def text_modality(self, ids: Tensor) -> Modality:
        """ids int64 (B, T), PAD at the end -> T tokens each."""
        tokens, vector = self.encode_text(ids)
        return Modality(tokens, ids != PAD, vector)

    def fuse(self, text: Modality | None, image: Modality | None) -> Fused:
        """Both, or what there is of them, fused; needs `config.fusion`."""
        assert self.fusion is not None, "a model of two towers alone"
        return self.fusion([text, image])

    def source(self, text: Modality, image: Modality | None) -> Modality:
        """What `decoder` reads of B texts, row by row with their pictures: their tokens (B, T, D);
        where it reads what is fused, (B, T, D + F), beside each word what `fusion` makes of it."""
        if self.decoder is None or not self.decoder.config.reads_fused:
            return text
        words = self.fuse(text, image).tokens[:, : text.tokens.shape[1]]
        return replace(text, tokens=torch.cat([text.tokens, words.to(text.tokens.dtype)], dim=-1))

    def match(self, text: Modality, image: Modality) -> Match:
        """Row by row, does text i describe picture i? Needs `config.fusion`."""
        return self.match_fused(self.fuse(text, image), text, image)

    def match_fused(self, fused: Fused, text: Modality, image: Modality) -> Match:
        """The same where they are fused already: what is fused says it all here."""
        assert self.matching is not None, "a model of two towers alone"
        return self.matching(fused)

    @torch.no_grad()
    def add_match_bias(self, bias: float) -> None:
        """Add to the bias of matching."""
        assert self.matching is not None, "a model of two towers alone"
        self.matching.bias.add_(bias)
