"""Pictures as a short sequence of discrete codes, so that a decoder of tokens can draw.

A convolutional encoder maps a picture to a grid of short vectors, finite scalar quantization
(Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2024) rounds each to one of V
codes, and a convolutional decoder draws the picture from the codes. There is no codebook to
learn, so no codebook loss and no collapse: each of the few dimensions of a vector is bounded and
rounded to its number of levels, and a code is the mixed-radix number of its levels.

Letters: B pictures, S their side, n rows and columns of codes, N = n x n, L dimensions of a code,
V codes, D the width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from chiasm.pipeline.model.config import FINE_STRIDE, ImageTokensConfig

EPSILON = 1e-3  # how far the bound reaches past the outermost levels: rounding still finds them
FINE_WIDTH = 48  # channels there


class Quantiser(nn.Module):
    """Finite scalar quantization: vectors -> levels -> codes, and back; it learns nothing."""

    counts: Tensor
    bases: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        counts = torch.tensor(levels)
        bases = torch.cat([torch.ones(1, dtype=torch.long), counts.cumprod(0)[:-1]])
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("bases", bases, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """z (..., L) -> the levels next to it as numbers from -1 to 1, (..., L) float32; the
        gradient passes the rounding unchanged (Bengio et al., Estimating or Propagating Gradients
        Through Stochastic Neurons, 2013).

        With c levels: h = (c - 1)(1 + EPSILON) / 2, o = 1/2 for even c and 0 for odd, and
        round(h tanh(z + artanh(o / h)) - o) / floor(c / 2).
        """
        half = (self.counts - 1) * (1 + EPSILON) / 2
        offset = (self.counts % 2 == 0) * 0.5
        bounded = half * torch.tanh(z.float() + torch.atanh(offset / half)) - offset
        return (bounded + (bounded.round() - bounded).detach()) / (self.counts // 2)

    def codes_of(self, quantised: Tensor) -> Tensor:
        """Outputs of `forward` (..., L) -> codes int64 (...), 0 to V - 1."""
        levels = (quantised * (self.counts // 2)).round().long() + self.counts // 2
        return (levels * self.bases).sum(-1)

    def levels_of(self, codes: Tensor) -> Tensor:
        """Inverse of `codes_of`: codes int64 (...) -> (..., L) float32."""
        levels = codes[..., None] // self.bases % self.counts
        return (levels - self.counts // 2) / (self.counts // 2)


class ResidualBlock(nn.Module):
    """x + conv 1 x 1 (gelu (conv 3 x 3 (x))), (B, C, H, W). No norm: one over the picture would
    make each code depend on all of it, which is harder to predict.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 1)
        # The block begins as the identity (Goyal et al., Accurate, Large Minibatch SGD, 2017).
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(approximate="tanh"), last
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ImageTokens(nn.Module):
    """Pictures <-> codes."""

    def __init__(self, config: ImageTokensConfig) -> None:
        super().__init__()
        self.config = config
        width, fine, dims = config.width, FINE_WIDTH, len(config.levels)
        step = config.stride // FINE_STRIDE
        of_encoder, of_decoder = config.depth
        self.encoder = nn.Sequential(
            nn.Conv2d(3, fine, FINE_STRIDE + 2, stride=FINE_STRIDE, padding=1),  # S / 4
            nn.GELU(approximate="tanh"),
            nn.Conv2d(fine, width, step + 2, stride=step, padding=1),  # n
            *(ResidualBlock(width) for _ in range(of_encoder)),
        )
        # The norm keeps the vectors where the bound of the quantiser is steep.
        self.projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dims))
        self.quantiser = Quantiser(config.levels)
        # Pixels of a cell are channels that are shuffled into place (Shi et al., Real-Time Single
        # Image and Video Super-Resolution, 2016): no checkerboard of overlapping strides.
        self.decoder = nn.Sequential(
            nn.Conv2d(dims, width, 3, padding=1),  # n
            *(ResidualBlock(width) for _ in range(of_decoder)),
            nn.Conv2d(width, fine * step**2, 1),
            nn.PixelShuffle(step),  # S / 4
            nn.GELU(approximate="tanh"),
            nn.Conv2d(fine, 3 * FINE_STRIDE**2, 3, padding=1),
            nn.PixelShuffle(FINE_STRIDE),  # S
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def features(self, pixels: Tensor) -> Tensor:
        """pixels uint8 (B, 3, S, S) -> what is quantised, (B, N, L) in row order."""
        x = self.encoder(to_unit(pixels).to(self.dtype))  # (B, D, n, n)
        return self.projection(x.flatten(2).transpose(1, 2))

    def quantise(self, pixels: Tensor) -> Tensor:
        """pixels uint8 (B, 3, S, S) -> levels (B, N, L) float32 in row order, see `Quantiser`;
        with gradients."""
        return self.quantiser(self.features(pixels))

    def draw(self, quantised: Tensor) -> Tensor:
        """Levels (B, N, L) of a square of any side -> pixels (B, 3, S, S) float32, -1 black to 1
        white and a little past either; with gradients."""
        columns = math.isqrt(quantised.shape[1])
        grid = quantised.transpose(1, 2).unflatten(2, (columns, columns))  # (B, L, n, n)
        return self.decoder(grid.to(self.dtype)).float()

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels uint8 (B, 3, S, S), S any multiple of the stride -> the same pictures through
        their codes, as `draw` gives."""
        return self.draw(self.quantise(pixels))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """pixels uint8 (B, 3, S, S) -> codes int64 (B, N) in row order, 0 to V - 1."""
        return self.quantiser.codes_of(self.quantise(pixels))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 (B, N) -> pixels uint8 (B, 3, S, S). ValueError for codes outside 0 to
        V - 1, or another number of them."""
        wanted, found = self.config.tokens, tuple(codes.shape)
        if codes.ndim != 2 or found[1] != wanted:
            raise ValueError(f"codes of shape {found}: expected (B, {wanted})")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.vocabulary:
            raise ValueError(f"codes: expected 0 to {self.config.vocabulary - 1}")
        drawn = self.draw(self.quantiser.levels_of(codes))
        return ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 -> float32 from -1 to 1."""
    return pixels.float() / 127.5 - 1
