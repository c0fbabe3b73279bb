"""The shapes of a model: frozen dataclasses, saved as config.json beside its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, cast

from chiasm.pipeline.model.tasks import PREFIXES

C = TypeVar("C")

STRIDE = 12  # pixels between patches
FINE_STRIDE = 4  # pixels between the features that edges and patterns are drawn from


def absent(value: Any) -> dict[str, Any]:
    """Metadata of a field that folders written earlier lack: what it is in them."""
    return {"absent": value}


def without_absent(config: Any) -> dict[str, Any]:
    """Plain values of a config by field name, without those that a folder which lacks them has:
    the same for today's code as for that of before such a field was there."""
    plain = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if "absent" not in item.metadata or value != item.metadata["absent"]:
            plain[item.name] = without_absent(value) if is_dataclass(value) else value
    return plain


def of_fields(kind: type[C], plain: Any, **parts: type) -> C:
    """A config, a dataclass, of plain values by field name; lists become tuples. parts: fields that
    are configs themselves, or None. A field that is missing is what `absent` says, never the
    default of today's code. ValueError that names all unknown and missing fields."""
    if not isinstance(plain, Mapping):
        raise ValueError(f"{kind.__name__}: expected fields by name, found {plain!r:.80}")
    known = fields(cast(Any, kind))
    given = {f.name: f.metadata["absent"] for f in known if "absent" in f.metadata} | dict(plain)
    names = {f.name for f in known}
    wrong = {"unknown": sorted(given.keys() - names), "missing": sorted(names - given.keys())}
    if any(wrong.values()):
        found = "; ".join(f"{what}: {', '.join(some)}" for what, some in wrong.items() if some)
        raise ValueError(f"{kind.__name__}: expected exactly its fields, found {found}")
    for name, value in given.items():
        if name in parts and value is not None:
            given[name] = of_fields(parts[name], value)
        elif isinstance(value, list):
            given[name] = tuple(value)
    return kind(**given)


def require_values(part: str, config: Any, zero: Sequence[str] = ()) -> None:
    """ValueError for a plain field of a config that is not of its type, for a whole number below 1,
    or below 0 where `zero` names it, and for heads that do not divide the width. part: what it is
    called."""
    for item in fields(config):
        value, kind = getattr(config, item.name), str(item.type)
        least = int(item.name not in zero)
        if kind == "int":
            fits, expected = _is_size(value, least), f"{least} or more"
        elif kind.startswith("tuple[int"):
            several = isinstance(value, tuple | list)
            fits = several and all(_is_size(size, least) for size in value)
            expected = f"several numbers, each {least} or more"
        elif kind == "bool":
            fits, expected = isinstance(value, bool), "true or false"
        elif kind == "float":
            fits, expected = type(value) in (int, float) and math.isfinite(value), "a number"
        elif kind == "str":
            fits, expected = isinstance(value, str), "a text"
        else:
            continue
        if not fits:
            name = f"{part} {item.name}".strip()
            raise ValueError(f"{name}: expected {expected}, found {value!r}")
        if item.name == "heads" and config.width % value:
            raise ValueError(
                f"{part} heads: expected a divisor of the width {config.width}, found {value}"
            )


def _is_size(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


@dataclass(frozen=True)
class ImageConfig:
    """The image tower: a convolutional stem of stride 12, then transformer blocks over N patches.

    side: S, pixels; a multiple of 12. stem: channels of the stem's first two of three layers.
    ValueError for other sides and for values that are no sizes.
    """

    side: int = 72
    stem: tuple[int, int] = (48, 96)
    width: int = 192
    depth: int = 4
    heads: int = 3

    def __post_init__(self) -> None:
        require_values("image", self, zero=("depth",))
        # What the stem makes of a side: a stride of 4, rounded up, then one of 3, rounded down.
        if -(-self.side // 4) // 3 != self.side // STRIDE or len(self.stem) != 2:
            raise ValueError(
                f"image: expected a side of whole patches, such as a multiple of {STRIDE}, and a "
                f"stem of two, found {self.side} and {self.stem}"
            )

    @property
    def patches(self) -> int:
        """N, patches of a picture."""
        return (self.side // STRIDE) ** 2


@dataclass(frozen=True)
class TextConfig:
    """The text tower. context: longest text in tokens, start and end included; the rest is cut.
    ValueError for values that are no sizes."""

    vocabulary: int = 1024
    context: int = 64
    width: int = 192
    depth: int = 2
    heads: int = 3

    def __post_init__(self) -> None:
        require_values("text", self, zero=("depth",))


@dataclass(frozen=True)
class FusionConfig:
    """How modalities are fused. fusion: concat, add, gated or cross_attention. slots: K, the
    tokens that add and gated resample each modality to. bounded_residual: the form of the joint
    vector, see fusion.py; False is that of folders that do not say it. residual_of_vectors: does
    the learned part of the bounded form read the modalities' vectors, too? ValueError where it
    should and the form is the other, and for values that are no sizes.
    """

    fusion: str = "cross_attention"
    width: int = 128
    depth: int = 2
    heads: int = 4
    slots: int = 16
    bounded_residual: bool = field(default=True, metadata=absent(False))
    residual_of_vectors: bool = field(default=False, metadata=absent(False))

    def __post_init__(self) -> None:
        require_values("fusion", self, zero=("depth",))
        if self.residual_of_vectors and not self.bounded_residual:
            raise ValueError("residual_of_vectors: expected with bounded_residual alone")


WORDS_APART = ("concat", "cross_attention")  # what a fusion makes of each word is a token


def keeps_words(fusion: FusionConfig | None) -> bool:
    """Whether there is a token for each word of a text in what is fused."""
    return fusion is not None and fusion.fusion in WORDS_APART


@dataclass(frozen=True)
class DecoderConfig:
    """The joint decoder. reads_fused: whether it reads, beside each word of a source, what the
    fusion makes of that with the picture. grounding: blocks in which a source's words look at the
    picture before the decoder reads them; context: longest target in tokens, its prefix included;
    prefixes: the first tokens of what it can do, some of `tasks.PREFIXES`. ValueError for others,
    and for sizes below 1 (grounding: below 0).
    """

    width: int = 192
    depth: int = 2
    grounding: int = field(default=1, metadata=absent(0))
    heads: int = 3
    context: int = 96
    prefixes: tuple[str, ...] = PREFIXES
    reads_fused: bool = field(default=False, metadata=absent(False))

    def __post_init__(self) -> None:
        require_values("decoder", self, zero=("grounding",))
        if not isinstance(self.prefixes, tuple | list):
            raise ValueError(f"decoder prefixes: expected a tuple, found {self.prefixes!r}")
        unknown = [prefix for prefix in self.prefixes if prefix not in PREFIXES]
        if unknown or len(set(self.prefixes)) < len(self.prefixes):
            raise ValueError(
                f"decoder prefixes: expected some of {', '.join(PREFIXES)}, each once, found "
                f"{', '.join(map(str, unknown or self.prefixes))}"
            )


@dataclass(frozen=True)
class ImageTokensConfig:
    """Pictures of `side` pixels as codes of `stride` x `stride` pixels each.

    side: S, a multiple of `stride`, which is a multiple of 4. levels: of each dimension of a code,
    at least 2; V is their product. width: D, channels at the codes' resolution. depth: residual
    blocks there, of the encoder and of the decoder.
    """

    side: int = 72
    stride: int = 8
    levels: tuple[int, ...] = (8, 5, 5, 5)
    width: int = 96
    depth: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        """ValueError for values that make no picture."""
        require_values("image tokens", self, zero=("depth",))
        if self.stride % FINE_STRIDE or self.side % self.stride:
            raise ValueError(
                f"side {self.side}, stride {self.stride}: expected a side that is a multiple of "
                f"the stride, and a stride that is a multiple of {FINE_STRIDE}"
            )
        if len(self.depth) != 2:
            raise ValueError(f"image tokens depth: expected two numbers, found {self.depth}")
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels {self.levels}: expected 2 or more in each dimension")

    @property
    def columns(self) -> int:
        """n, codes in a row."""
        return self.side // self.stride

    @property
    def tokens(self) -> int:
        """N, codes of a picture."""
        return self.columns**2

    @property
    def vocabulary(self) -> int:
        """V, different codes."""
        return math.prod(self.levels)


@dataclass(frozen=True)
class ModelConfig:
    """Two towers into one space of E = `dim` dimensions, and what joins them; `fusion` None: two
    towers alone, whose joint vector is the mean; `decoder` None: nothing that writes;
    `image_tokens` None: nothing that draws. In folders that do not name them these three are None.
    ValueError for a decoder whose context is shorter than the codes of a picture, and for one with
    `reads_fused` without a fusion that keeps words apart.
    """

    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    dim: int = 256
    fusion: FusionConfig | None = field(default_factory=FusionConfig, metadata=absent(None))
    decoder: DecoderConfig | None = field(default=None, metadata=absent(None))
    image_tokens: ImageTokensConfig | None = field(default=None, metadata=absent(None))

    def __post_init__(self) -> None:
        require_values("", self)
        if self.decoder and self.image_tokens and self.decoder.context < self.image_tokens.tokens:
            raise ValueError(
                f"decoder context {self.decoder.context}: expected at least the "
                f"{self.image_tokens.tokens} codes of a picture"
            )
        if self.decoder and self.decoder.reads_fused and not keeps_words(self.fusion):
            raise ValueError(
                "decoder reads_fused: expected a fusion that keeps words apart, "
                f"{' or '.join(WORDS_APART)}, found {self.fusion and self.fusion.fusion}"
            )

    @property
    def codes(self) -> int:
        """C, codes of pictures that the decoder can write."""
        return 0 if self.image_tokens is None else self.image_tokens.vocabulary

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name; `checkpoint` gives them the names they have in files."""
        plain = asdict(self)
        # Folders that were written before these parts were there have no such keys.
        for name in ("decoder", "image_tokens"):
            if plain[name] is None:
                del plain[name]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; ValueError for unknown or missing fields, see `of_fields`."""
        return of_fields(
            cls,
            plain,
            image=ImageConfig,
            text=TextConfig,
            fusion=FusionConfig,
            decoder=DecoderConfig,
            image_tokens=ImageTokensConfig,
        )
