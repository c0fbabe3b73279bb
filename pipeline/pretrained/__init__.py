"""Other people's models: finding and loading them, and their image preprocessing."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Self

from pydantic import Field

from chiasm.pipeline.errors import UsageError, require_at_least

__all__ = ["EncoderOptions", "EncoderSettings", "mend_model", "most_moved", "parse_weights"]


def mend_model(message: str) -> str:
    """What a person can do about a model that failed with this message of its library."""
    if "padding token" in message:
        return 'name its padding token as "pad_token" in the model\'s tokenizer_config.json'
    if "torchvision::" in message:  # one of its operators is missing: it is of another torch
        return "install the torchvision that is made for this torch, or uninstall torchvision"
    return "check that all files are of one model and that its libraries fit it"


def parse_weights(text: str) -> dict[str, float]:
    """`image=2,text=1` -> {"image": 2.0, "text": 1.0}; UsageError for another form, a name given
    twice, and a weight that is no finite number from 0 up."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.partition("="))
        plain = re.fullmatch(r"[0-9]{0,9}\.?[0-9]{1,9}|[0-9]{1,9}\.", number)
        if not name or not equals or not plain or name in weights:
            raise UsageError(
                f"encoder.joint_weights={text}",
                expected="each modality once with a number from 0 up, as in image=2,text=1",
                found=repr(part.strip()),
            )
        weights[name] = float(number)
    return weights


def most_moved(precision: str) -> float:
    """How far an item's unit vector may be from the one that it has beside other items: summed in
    another order, in float32 it moves by some 1e-6, in bfloat16 by some 1e-2."""
    return 1e-3 if precision == "float32" else 0.1


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """What is chosen of an encoder beside its name. Vectors and fingerprint depend on it, and a
    collection keeps it in collection.json. None: the model's own.

    query_prompt, document_prompt: a prompt of the model's by its name, or a text. dims: vectors are
    cut to so many numbers, and made unit again. joint_weights: of the modalities in the mean that
    is a joint vector, as in `image=2,text=1`; one that is not named weighs 1. pool_tokens: each so
    many similar tokens of an item become one vector, in models that give a vector for each token.
    """

    query_prompt: str | None = None
    document_prompt: str | None = None
    dims: Annotated[int, Field(ge=1)] | None = None
    joint_weights: str | None = None
    pool_tokens: Annotated[int, Field(ge=1)] | None = None

    def given(self) -> dict[str, Any]:
        """The options that are not None."""
        values = {option.name: getattr(self, option.name) for option in fields(EncoderOptions)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class EncoderSettings(EncoderOptions):
    """How an encoder runs, with its options.

    precision: auto (bfloat16 where the device is fast in it, else float32), float32 or bfloat16.
    device: auto (cuda where the process has one, else cpu), cpu, cuda or cuda:N.
    threads: CPU threads of the forward pass; 0 for torch's default.
    """

    precision: str = "auto"
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        require_at_least(0, encoder__threads=self.threads)
        if self.joint_weights is not None:  # written in one way, since it is compared
            weights = sorted(parse_weights(self.joint_weights).items())
            plain = ",".join(f"{name}={weight:.18g}" for name, weight in weights)
            object.__setattr__(self, "joint_weights", plain)
        counts = {"encoder__dims": self.dims, "encoder__pool_tokens": self.pool_tokens}
        require_at_least(1, **{name: count for name, count in counts.items() if count is not None})

    def with_options(self, stored: EncoderOptions, where: str) -> Self:
        """These settings with the options of a collection. UsageError where one is set here and
        another there; where: the collection's name."""
        kept = stored.given()
        for name, value in self.given().items():
            if value != kept.get(name):
                raise UsageError(
                    f"encoder.{name}={value}",
                    expected=f"what {where} was made with",
                    found=str(kept.get(name, "none")),
                    do="leave it out, or embed into another collection",
                )
        return replace(self, **kept)
