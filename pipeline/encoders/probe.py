"""A model is given one pair when it is loaded: two texts of different length, two pictures.

What is wrong with the model itself is found here, in one line, before a shard is read: a tokenizer
without a padding token, vectors of another width than it says, NaN for everything, vectors that
depend on what is encoded beside an item. It costs a forward pass of two pictures, two texts and
their joint vectors, one of the texts as queries, and one of a picture and of a text alone.
Sounds are probed as pictures are. Other modalities are not: nobody but their encoder knows their
bytes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from chiasm.pipeline.encoders.answerers import (
    TASKS,
    Answerer,
    GenerateSettings,
    Reply,
    Request,
    answer_batch,
)
from chiasm.pipeline.encoders.base import joins
from chiasm.pipeline.encoders.faults import (
    ENCODE_REASONS,
    Fault,
    match_checked,
    require_unit_vectors,
)
from chiasm.pipeline.encoders.protocols import (
    JOINT,
    Array,
    Encoded,
    Encoder,
    Matcher,
    Preprocessor,
)
from chiasm.pipeline.errors import ChiasmError, EncoderError, Undecodable
from chiasm.pipeline.pretrained import mend_model, most_moved
from chiasm.pipeline.records import IMAGE, TEXT

T = TypeVar("T")

# Words that say nothing of what pictures show: a model may well have a fault in one of those.
TEXTS = ("a note", "something that somebody once wrote about what was there")


def probe_encoder(encoder: Encoder) -> None:
    """Raise EncoderError where the encoder does not give unit vectors of its widths for two texts
    and two pictures, for texts as queries too, or where an item's vector depends on what is encoded
    beside it. One of two that it refuses alone is that item's fault, not the model's."""
    encoded: dict[str, Encoded] = {}
    sounds = {
        modality: _sounds(given.rate)
        for modality, given in encoder.modalities.items()
        if given.rate is not None
    }
    part = ""
    try:
        for modality, raws in (_inputs() | sounds).items():
            part = modality
            items = _preprocessed(encoder, modality, raws)
            if items is not None:
                made = _trial(functools.partial(_encode, encoder.encode, encoder, modality), items)
                if made is not None:
                    encoded[modality] = made
                    _require_the_same_alone(encoder, modality, items[0], made.vectors[0])
                if modality == TEXT:
                    part = "text as a query"
                    ask = functools.partial(_encode, encoder.encode_queries, encoder, modality)
                    _trial(ask, items)
        part = JOINT
        if joins(encoder, encoded.keys()):
            _trial(functools.partial(_encode_joint, encoder, encoded), range(len(TEXTS)))
    except ChiasmError:
        raise
    except Exception as error:
        fault = Fault.of(error, part)
        raise EncoderError(
            f"encoder {encoder.name}",
            expected=f"unit vectors for two texts and two {'sounds' if sounds else 'pictures'}, "
            "as a trial",
            found=fault.detail,
            do=_advice(fault, encoder),
        ) from error


def probe_matcher(matcher: Matcher) -> None:
    """Raise EncoderError where the matcher does not score two texts with two pictures; one of two
    pairs may be refused."""
    try:
        sides = [
            (modality, _preprocessed(matcher, modality, raws))
            for modality, raws in _inputs().items()
        ]
        if all(items is not None for _, items in sides):
            _trial(functools.partial(_match, matcher, sides), range(len(TEXTS)))
    except ChiasmError:
        raise
    except Exception as error:
        fault = Fault.of(error)
        raise EncoderError(
            f"matcher {matcher.name}",
            expected="scores for two texts with two pictures, as a trial",
            found=fault.detail,
            do=_advice(fault, matcher),
        ) from error


def probe_answerer(answerer: Answerer, task: str, language: str) -> None:
    """Raise EncoderError where the answerer has an answer for neither of two inputs of the task.
    UsageError for a task or language that it lacks."""
    try:
        images: Sequence[Any] | None = (None, None)
        if IMAGE in TASKS[task]:
            images = _preprocessed(answerer, IMAGE, _inputs()[IMAGE])
        if images is None:
            return
        texts = TEXTS if TEXT in TASKS[task] else (None, None)
        requests = [Request(task, language, *one) for one in zip(images, texts, strict=True)]
        replies = answer_batch(answerer, requests, GenerateSettings(max_tokens=2))
        faults = [reply for reply in replies if isinstance(reply, Fault)]
        faults = [fault for fault in faults if fault.reason != "no_words"]  # of so few tokens
        if len(faults) == len(requests):
            raise faults[-1]
    except ChiasmError:
        raise
    except Exception as error:
        fault = Fault.of(error)
        raise EncoderError(
            f"model {answerer.name}",
            expected=f"an answer for one of two inputs, as a trial of {task}",
            found=fault.detail,
            do=_advice(fault, answerer),
        ) from error


def require_trial(
    answerer: Answerer, requests: Sequence[Request], replies: Sequence[Reply | Fault]
) -> None:
    """Where no request has an answer, `probe_answerer` for the first: EncoderError where that is
    the model's fault."""
    faults = [isinstance(reply, Fault) and reply.reason in ENCODE_REASONS for reply in replies]
    if faults and all(faults):
        probe_answerer(answerer, requests[0].task, requests[0].language)


def _trial(encode: Callable[[Sequence[Any]], T], items: Sequence[Any]) -> T | None:
    """What `encode` makes of both items; None where it takes one of them and not the other. Raises
    what it raises where it takes neither, or each alone and not both together."""
    try:
        return encode(items)
    except Exception:
        taken = 0
        for item in items:
            with contextlib.suppress(Exception):
                encode([item])
                taken += 1
        if taken != 1:
            raise
    return None


def _require_the_same_alone(encoder: Encoder, modality: str, item: Any, beside: Array) -> None:
    """Raise EncoderError where an item has another vector alone than `beside` another item. That is
    a model whose padding is not masked, or has to be of full length."""
    alone = _encode(encoder.encode, encoder, modality, [item]).vectors[0]
    if np.linalg.norm(alone - beside) > most_moved(encoder.precision):
        raise EncoderError(
            f"encoder {encoder.name}",
            expected="vectors that depend on their item alone",
            found=f"cosine {alone @ beside:.4f} between those of the same {modality}, alone and "
            "beside another",
            do="take another encoder, such as hf: for CLIP and SigLIP; this one does not mask what "
            "it pads",
        )


def _encode(
    encode: Callable[[str, Sequence[Any]], Encoded],
    encoder: Encoder,
    modality: str,
    items: Sequence[Any],
) -> Encoded:
    encoded = encode(modality, items)
    require_unit_vectors(encoded.vectors, len(items), encoder.dims[modality], modality)
    return encoded


def _encode_joint(encoder: Encoder, encoded: Mapping[str, Encoded], rows: Sequence[int]) -> None:
    parts = {modality: made.take(np.array(rows)) for modality, made in encoded.items()}
    joint = encoder.encode_joint(parts)
    require_unit_vectors(joint, len(rows), encoder.dims[JOINT], JOINT)


def _match(matcher: Matcher, sides: Sequence[tuple[str, Any]], rows: Sequence[int]) -> None:
    """Row by row, the items of one side with those of the other."""
    first, second = ((modality, [items[row] for row in rows]) for modality, items in sides)
    match_checked(matcher, first, second, np.stack([np.arange(len(rows))] * 2, axis=1))


def _inputs() -> dict[str, tuple[Any, Any]]:
    """Two texts, and two small pictures of different shape, with structure in every channel."""
    y, x = np.mgrid[0:64, 0:96]
    wide = np.stack([2 * x, 3 * y, 255 - x - y], axis=-1).astype(np.uint8)
    return {IMAGE: (wide, np.ascontiguousarray(wide[:, 16:80].transpose(1, 0, 2))), TEXT: TEXTS}


def _sounds(rate: int) -> tuple[Any, Any]:
    """Two tones that rise, of half a second and of two."""
    seconds = np.arange(2 * rate, dtype=np.float32) / rate
    tone = np.sin(2 * np.pi * (200 + 100 * seconds) * seconds).astype(np.float32)
    return tone[: rate // 2], tone


def _preprocessed(model: Preprocessor, modality: str, raws: tuple[Any, Any]) -> list[Any] | None:
    """The items to encode; None where the model takes none of that modality, or not these: a model
    may refuse pictures by their size, or texts by their language."""
    if modality not in model.modalities:
        return None
    try:
        return [model.preprocess(modality, raw) for raw in raws]
    except Undecodable:
        return None


def _advice(fault: Fault, model: Any) -> str:
    """What a person can do about a fault of the model."""
    if fault.reason == "out_of_memory":
        return "free memory, or take a smaller model or another --device"
    if fault.reason != "refused" and getattr(model, "precision", "float32") != "float32":
        return "try --set encoder.precision=float32"
    if fault.reason == "not_finite":
        return "its weights are damaged: fetch or train them again"
    return mend_model(fault.detail)
