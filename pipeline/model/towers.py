"""The two towers and the dual encoder they make.

Each tower gives its tokens and one pooled vector. The
image tower begins with three convolutions in place of a linear patch embedding: small vision
transformers learn much faster so (Xiao et al., Early Convolutions Help Transformers See Better,
2021).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.blocks import Block
from chiasm.pipeline.model.config import ImageConfig, ModelConfig, TextConfig
from chiasm.pipeline.model.pooling import Pool

PAD = 0  # the token id of padding
INITIAL_SCALE = 1 / 0.07  # of the logits, as in CLIP (Radford et al., 2021)
LARGEST_SCALE = 100.0


class ImageTower(nn.Module):
    """Pictures -> N patch tokens and a pooled vector."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        width, (first, second) = config.width, config.stem
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1),
            nn.GroupNorm(8, first),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GroupNorm(8, second),
            nn.GELU(approximate="tanh"),
            nn.Conv2d(second, width, 5, stride=3, padding=1),
        )
        self.position = nn.Parameter(torch.randn(1, config.patches, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.pool = Pool(width, config.heads)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels uint8 (B, 3, S, S) -> tokens (B, N, D) in row order, pooled (B, D)."""
        x = (pixels.float() / 127.5 - 1).to(self.position.dtype)
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position  # (B, N, D)
        for block in self.blocks:
            x = block(x)
        tokens = self.norm(x)
        return tokens, self.pool(tokens)


class TextTower(nn.Module):
    """Token ids -> T text tokens and a pooled vector; every token attends to the whole text."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(1, config.context, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.pool = Pool(config.width, config.heads)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids int64 (B, T), PAD at the end, T <= context -> tokens (B, T, D), pooled (B, D)."""
        mask = (ids != PAD)[:, None, None, :]  # (B, 1, 1, T)
        x = self.embedding(ids) + self.position[:, : ids.shape[1]]  # (B, T, D)
        for block in self.blocks:
            x = block(x, mask)
        tokens = self.norm(x)
        return tokens, self.pool(tokens, mask)


class DualEncoder(nn.Module):
    """Pictures and texts -> unit vectors of one space of E dimensions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config.image)
        self.text = TextTower(config.text)
        self.image_projection = nn.Linear(config.image.width, config.dim, bias=False)
        self.text_projection = nn.Linear(config.text.width, config.dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        self.apply(initialise)

    @property
    def scale(self) -> Tensor:
        """Factor from cosines to logits, learned."""
        return self.log_scale.exp()

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Bring the scale down to LARGEST_SCALE, after a step of training. A clamp in the forward
        pass would have no gradient above it, and a scale there could not come back."""
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels uint8 (B, 3, S, S) -> tokens (B, N, D), unit vectors (B, E) float32."""
        tokens, pooled = self.image(pixels)
        return tokens, functional.normalize(self.image_projection(pooled).float(), dim=-1)

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids int64 (B, T) -> tokens (B, T, D), unit vectors (B, E) float32."""
        tokens, pooled = self.text(ids)
        return tokens, functional.normalize(self.text_projection(pooled).float(), dim=-1)


def initialise(module: nn.Module) -> None:
    """Normal weights of deviation 0.02 and no biases, as in BERT and GPT; convolutions as torch has
    them.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
