"""The shapes of a model: frozen dataclasses, saved as config.json beside its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from chiasm.pipeline.model.tasks import PREFIXES

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
    """The text tower. context: longest text in tokens, start and end included; the rest is cut."""

    vocabulary: int = 1024
    context: int = 64
    width: int = 192
    depth: int = 2
    heads: int = 3


@dataclass(frozen=True)
class FusionConfig:
    """How modalities are fused. fusion: concat, add, gated or cross_attention. slots: K, the
    tokens that add and gated resample each modality to. bounded_residual: the form of the joint
    vector, see fusion.py; False is that of folders that do not say it.
    """

    fusion: str = "cross_attention"
    width: int = 128
    depth: int = 2
    heads: int = 4
    slots: int = 16
    bounded_residual: bool = True

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> FusionConfig:
        """Of plain values by field name; TypeError for unknown ones."""
        plain: dict[str, Any] = {"bounded_residual": False, **fields}
        return cls(**plain)


@dataclass(frozen=True)
class DecoderConfig:
    """The joint decoder. context: longest target in tokens, its prefix included; prefixes: the
    first tokens of what it can do, see `tasks`.
    """

    width: int = 192
    depth: int = 3
    heads: int = 3
    context: int = 96
    prefixes: tuple[str, ...] = PREFIXES


@dataclass(frozen=True)
class ModelConfig:
    """Two towers into one space of E = `dim` dimensions, and what joins them; `fusion` None: two
    towers alone, whose joint vector is the mean; `decoder` None: nothing that writes.
    """

    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    dim: int = 256
    fusion: FusionConfig | None = field(default_factory=FusionConfig)
    decoder: DecoderConfig | None = None

    @property
    def codes(self) -> int:
        """C, codes of pictures that the decoder can write."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name; `checkpoint` gives them the names they have in files."""
        fields = asdict(self)
        if self.decoder is None:  # folders that were written before decoders have no such key
            del fields["decoder"]
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; TypeError or KeyError for unknown or missing fields."""
        plain = dict(fields)
        image, text, fusion = dict(plain.pop("image")), plain.pop("text"), plain.pop("fusion", None)
        image["stem"] = tuple(image["stem"])
        decoder = plain.pop("decoder", None)
        if decoder:
            decoder = decoder | {"prefixes": tuple(decoder["prefixes"])}
        return cls(
            image=ImageConfig(**image),
            text=TextConfig(**text),
            dim=plain.pop("dim"),
            fusion=FusionConfig.from_dict(fusion) if fusion else None,
            decoder=DecoderConfig(**decoder) if decoder else None,
            **plain,
        )
