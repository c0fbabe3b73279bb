"""What a model is: frozen dataclasses, saved as config.json beside its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

STRIDE = 12  # pixels between patches


@dataclass(frozen=True)
class ImageConfig:
    """The image tower: a convolutional stem of stride 12, then transformer blocks over N patches.

    side: S, pixels; a multiple of 12. stem: channels of the stem's first two of three layers.
    """

    side: int = 72
    stem: tuple[int, int] = (48, 96)
    width: int = 192
    depth: int = 4
    heads: int = 3

    @property
    def patches(self) -> int:
        """N, patches of a picture."""
        return (self.side // STRIDE) ** 2


@dataclass(frozen=True)
class TextConfig:
    """The text tower. context: longest text in tokens, start and end among them; more is cut
    off.
    """

    vocabulary: int = 1024
    context: int = 64
    width: int = 192
    depth: int = 2
    heads: int = 3


@dataclass(frozen=True)
class FusionConfig:
    """How modalities are fused. how: concat, add, gated or cross_attention. slots: K, the tokens
    that add and gated bring each modality to.
    """

    how: str = "cross_attention"
    width: int = 128
    depth: int = 2
    heads: int = 4
    slots: int = 16


@dataclass(frozen=True)
class ModelConfig:
    """Two towers into one space of E = `dim` dimensions, and what joins them; `fusion` None: two
    towers alone, whose joint vector is the mean.
    """

    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    dim: int = 256
    fusion: FusionConfig | None = field(default_factory=FusionConfig)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for json."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> ModelConfig:
        """The config that `to_json` told of; TypeError or KeyError for unknown or missing
        fields.
        """
        image = dict(told["image"])
        image["stem"] = tuple(image["stem"])
        fusion = told.get("fusion")
        return cls(
            ImageConfig(**image),
            TextConfig(**told["text"]),
            told["dim"],
            FusionConfig(**fusion) if fusion else None,
        )
