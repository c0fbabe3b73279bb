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
class ModelConfig:
    """Two towers into one space of E = `dim` dimensions."""

    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    dim: int = 256

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
        return cls(ImageConfig(**image), TextConfig(**told["text"]), told["dim"])
