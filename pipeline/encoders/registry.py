"""Encoders, matchers and answerers by name: tables of loaders, `register_encoder`, entry points.

A name is `family` or `family:model`: `pocket`, `hf:google/siglip2-base-patch16-224`,
`st:Qwen/Qwen3-VL-Embedding-2B`. Loading one family imports only what that family needs, so that
`pocket` costs no transformers import.

`register_encoder` makes a family known to this process. A package that declares an entry point in
the group `chiasm.encoders` makes it known wherever it is installed: in the workers of a cluster and
in a later `chiasm search`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata

from chiasm.pipeline.encoders.answerers import Answerer
from chiasm.pipeline.encoders.base import require_matcher
from chiasm.pipeline.encoders.faults import describe
from chiasm.pipeline.encoders.probe import probe_encoder, probe_matcher
from chiasm.pipeline.encoders.protocols import Encoder, Matcher
from chiasm.pipeline.encoders.shortened import shortened
from chiasm.pipeline.encoders.weighted import weighted
from chiasm.pipeline.errors import ChiasmError, EncoderError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings, mend_model

ENTRY_POINTS = "chiasm.encoders"

Loader = Callable[[str, EncoderSettings], Encoder]
"""What follows the colon of a name, and settings -> the encoder. Raises EncoderError."""


def _pocket(model: str, settings: EncoderSettings) -> Encoder:
    from chiasm.pipeline.encoders import pocket

    return pocket.load(model, settings)


def _huggingface(model: str, settings: EncoderSettings) -> Encoder:
    from chiasm.pipeline.encoders import huggingface

    return huggingface.load(model, settings)


def _huggingface_matcher(model: str, settings: EncoderSettings) -> Matcher:
    from chiasm.pipeline.encoders import huggingface

    return huggingface.load_matcher(model, settings)


def _sentence_transformer(model: str, settings: EncoderSettings) -> Encoder:
    from chiasm.pipeline.encoders import multi_vector, sentence_transformer

    if multi_vector.is_multi_vector(model):
        return multi_vector.load(model, settings)
    multi_vector.refuse_pooling(model, settings)
    return sentence_transformer.load(model, settings)


def _open_clip(model: str, settings: EncoderSettings) -> Encoder:
    from chiasm.pipeline.encoders import openclip

    return openclip.load(model, settings)


def _two_tower(model: str, settings: EncoderSettings) -> Encoder:
    from chiasm.pipeline.encoders import two_tower

    return two_tower.load(model, settings)


def _joint(model: str, settings: EncoderSettings) -> Encoder:
    from chiasm.pipeline.encoders import joint

    return joint.load(model, settings, _load)


def _cross_encoder(model: str, settings: EncoderSettings) -> Matcher:
    from chiasm.pipeline.encoders import cross_encoder

    return cross_encoder.load(model, settings)


def _huggingface_answers(model: str, settings: EncoderSettings) -> Answerer:
    from chiasm.pipeline.encoders import huggingface_answers

    return huggingface_answers.load(model, settings)


def _pocket_answers(model: str, settings: EncoderSettings) -> Answerer:
    from chiasm.pipeline.encoders import pocket_answerer

    return pocket_answerer.load(model, settings)


ENCODERS: dict[str, Loader] = {
    "pocket": _pocket,
    "hf": _huggingface,
    "st": _sentence_transformer,
    "oc": _open_clip,
    "two-tower": _two_tower,
    "joint": _joint,
}
# Matchers that are no encoders. Every encoder that is a matcher can be named too.
MATCHERS: dict[str, Callable[[str, EncoderSettings], Matcher]] = {
    "hf": _huggingface_matcher,
    "st": _cross_encoder,
}
ANSWERERS: dict[str, Callable[[str, EncoderSettings], Answerer]] = {
    "pocket": _pocket_answers,
    "hf": _huggingface_answers,
}

# Options that not every family takes. Where they are ignored, vectors would be others than told.
TAKEN_BY: dict[str, tuple[str, ...]] = {
    "query_prompt": ("st",),
    "document_prompt": ("st",),
    "pool_tokens": ("st",),
}

USAGES = {
    "pocket": "pocket",
    "hf": "hf:ID_OR_DIR",
    "st": "st:ID_OR_DIR",
    "oc": "oc:NAME_OR_DIR",
    "two-tower": "two-tower:DIR",
    "joint": "joint:DIR",
}


def register_encoder(family: str, loader: Loader) -> None:
    """Make `family` and `family:MODEL` names of encoders in this process.

    The same family registered again replaces what was there. ValueError for a name that would hide
    one of chiasm's own, or that holds a colon.
    """
    if ":" in family or not family or family in USAGES:
        raise ValueError(f"expected a new family without a colon, found {family!r}")
    ENCODERS[family] = loader


def split_encoder_name(name: str) -> tuple[str, str]:
    """`family:model` -> (family, model), loading nothing; UsageError for an unknown family, and for
    the names of several encoders."""
    family, _, model = name.partition(":")
    parts = re.split(r"[\s,+&]+(?=[a-z-]+:)", name)
    if len(parts) > 1 and not os.path.exists(os.path.expanduser(model)):
        raise UsageError(
            f"encoder {name!r}",
            expected="one encoder, since vectors of two are of different spaces and are not joined",
            found=f"{len(parts)}: {', '.join(parts)}",
            do="embed into a collection for each",
        )
    if family not in ENCODERS and family not in _installed():
        known = [USAGES.get(item, item) for item in (*ENCODERS, *_installed())]
        raise UsageError(
            f"encoder {name!r}",
            expected="one of " + ", ".join(known),
            do="see chiasm embed --help",
        )
    return family, model


def with_absolute_folder(name: str) -> str:
    """`hf:./model` -> `hf:/where/it/is/model`, so that the name holds in any folder; another name
    as it is, of whatever family."""
    family, _, model = name.partition(":")
    folder = os.path.expanduser(model)
    if model and os.path.isdir(folder):
        return f"{family}:{os.path.realpath(folder)}"
    return name


def load_encoder(name: str, settings: EncoderSettings | None = None) -> Encoder:
    """The encoder called `name`, after a trial with one pair (`probe.py`); UsageError for an
    unknown family, EncoderError for a model that cannot be loaded or fails the trial."""
    encoder = _load(name, settings)
    probe_encoder(encoder)
    return encoder


def _load(name: str, settings: EncoderSettings | None) -> Encoder:
    """What the family's loader makes; whatever it raises becomes an EncoderError."""
    family, model = split_encoder_name(name)
    settings = settings or EncoderSettings()
    _require_taken(family, settings)
    loader = ENCODERS.get(family)
    if loader is None:
        loader = _load_entry_point(_installed()[family])
    with _translating_errors(f"encoder {name}"):
        # Both are of this encoder, and of none that it may load below itself.
        encoder = loader(model, replace(settings, joint_weights=None, dims=None))
        if settings.joint_weights is not None:
            encoder = weighted(encoder, settings.joint_weights)
        return encoder if settings.dims is None else shortened(encoder, settings.dims)


def _require_taken(family: str, settings: EncoderSettings) -> None:
    """UsageError for an option that the family does not take."""
    for option in settings.given():
        families = TAKEN_BY.get(option)
        if families is not None and family not in families:
            raise UsageError(
                f"encoder.{option}",
                expected="an encoder that takes it: "
                + (", ".join(map(_usage, families)) or "none"),
                found=_usage(family),
                do="leave it out",
            )


def _usage(family: str) -> str:
    return USAGES.get(family, family)


@contextmanager
def _translating_errors(what: str) -> Iterator[None]:
    """A context for loading a model: whatever its libraries raise becomes an EncoderError."""
    try:
        yield
    except ChiasmError:
        raise
    except Exception as error:  # libraries of models, and encoders of others, raise anything
        raise EncoderError(
            what,
            expected="a model that can be loaded",
            found=describe(error),
            do=mend_model(str(error)),
        ) from error


def load_matcher(name: str, settings: EncoderSettings | None = None) -> Matcher:
    """The matcher called `name`: a BLIP for `hf:`, a CrossEncoder for `st:`, else an encoder that
    also matches; after a trial with one pair.

    UsageError for an unknown family and for an encoder that makes vectors only, EncoderError for a
    model that cannot be loaded or fails the trial."""
    family, _, model = name.partition(":")
    if family in MATCHERS:
        with _translating_errors(f"matcher {name}"):
            return MATCHERS[family](model, settings or EncoderSettings())
    matcher = require_matcher(_load(name, settings))  # which need not be an encoder
    probe_matcher(matcher)
    return matcher


def load_answerer(name: str, settings: EncoderSettings | None = None) -> Answerer:
    """The answerer called `name`: `pocket`, `pocket:DIR` or `hf:ID_OR_DIR`.

    UsageError for another family and for a model that answers nothing, EncoderError for a model
    that cannot be loaded."""
    family, _, model = name.partition(":")
    if family not in ANSWERERS:
        known = [USAGES.get(item, item) for item in ANSWERERS]
        raise UsageError(f"model {name!r}", expected="one of " + ", ".join(known))
    with _translating_errors(f"model {name}"):
        return ANSWERERS[family](model, settings or EncoderSettings())


def _installed() -> dict[str, metadata.EntryPoint]:
    """Families that installed packages declare; chiasm's own come first."""
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}


def _load_entry_point(point: metadata.EntryPoint) -> Loader:
    try:
        loader = point.load()
    except Exception as error:  # a package of somebody else may raise anything
        raise EncoderError(
            f"encoder {point.name}",
            expected=f"the entry point {point.value} of an installed package",
            found=f"{type(error).__name__}: {error}",
            do="fix or reinstall that package",
        ) from error
    if not callable(loader):
        raise EncoderError(
            f"encoder {point.name}",
            expected=f"a function at the entry point {point.value}",
            found=type(loader).__name__,
            do="fix or reinstall that package",
        )
    return loader
