"""Queries -> vectors, by the collection's own encoder.

The words of all queries of a batch are encoded together, and so are their pictures, sounds and
other members, each by the same decoder that read the shards. A query of several is what the
encoder's `encode_joint_queries` makes of them, one of weighted terms the normalised weighted sum of
their vectors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from chiasm.index.queries import MemberSource, PictureSource, Query, Term
from chiasm.index.query.given_vectors import given_vectors
from chiasm.index.query.query_picture import encoded_file, encoded_picture, source_name
from chiasm.pipeline.encoders import (
    DEFAULT,
    JOINT,
    Encoded,
    Encoder,
    ExplainingEncoder,
    Explanation,
    Fault,
    Preprocessor,
    probe_encoder,
    require_modality,
    require_unit_vectors,
    unit,
)
from chiasm.pipeline.errors import ChiasmError, Undecodable, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.sounds import SoundSettings
from chiasm.pipeline.sounds import decode as decode_sound

T = TypeVar("T")
Encode = Callable[[str, Sequence[Any]], Encoded]

BATCH = 64  # texts or pictures encoded at once
# A weighted sum that is shorter than this, as a share of the sum of the weights, is no direction: a
# vector differs by some 1e-6 from batch to batch, in bfloat16 by 4e-3.
MIN_SUM = 1e-3


def encode_queries(
    queries: Sequence[Query],
    encoder: Encoder | None,
    dim: int,
    *,
    report_cut: Callable[[str, int], None] = lambda name, tokens: None,
) -> np.ndarray:
    """One unit vector a query: (Q, dim) float32.

    encoder may be None where every query brings its vector. report_cut: called with each text that
    is longer than the encoder takes, and how many of its tokens are cut off. Raises UsageError for
    a vector of another width, for a picture that cannot be read, and for a query that the encoder
    does not take.
    """
    return encode_with_tokens(queries, encoder, dim, report_cut=report_cut)[0]


def encode_with_tokens(
    queries: Sequence[Query],
    encoder: Encoder | None,
    dim: int,
    *,
    report_cut: Callable[[str, int], None] = lambda name, tokens: None,
) -> tuple[np.ndarray, list[list[tuple[float, np.ndarray]] | None]]:
    """The same, and of each query the weights and tokens (T, W) float32 of its parts; None of one
    that brings its vector, and where the encoder gives none."""
    xq = np.zeros((len(queries), dim), dtype=np.float32)
    tokens: list[list[tuple[float, np.ndarray]] | None] = [None] * len(queries)
    for number, query in enumerate(queries):
        if query.vector is not None:
            xq[number] = _given(query.vector, dim)
    inputs = [
        Input(number, term, _name(term, query))
        for number, query in enumerate(queries)
        for term in query.inputs
    ]
    if encoder is None:
        assert not inputs
        return xq, tokens
    parts: dict[int, list[Encoded]] = defaultdict(list)  # of each query, in the order of its inputs
    for entry, row in zip(inputs, _encode_inputs(inputs, encoder), strict=True):
        parts[entry.query].append(row)
        if entry.term.image is None and row.tokens_cut is not None and row.tokens_cut[0]:
            report_cut(entry.name, int(row.tokens_cut[0]))
    for number, rows in parts.items():
        xq[number] = _query_vector(queries[number], rows, encoder)
        tokens[number] = _query_tokens(queries[number], rows)
    return xq, tokens


def _query_tokens(query: Query, rows: Sequence[Encoded]) -> list[tuple[float, np.ndarray]] | None:
    """Words and picture weigh the same, terms as they say."""
    weights = [float(term.weight) for term in query.inputs]
    parts = [row.tokens for row in rows]
    if any(part is None for part in parts):
        return None
    return [
        (weight, np.asarray(part.values, np.float32))
        for weight, part in zip(weights, parts, strict=True)
        if part is not None
    ]


@dataclass(frozen=True, slots=True)
class Input:
    """A text, a picture or a member to encode. query: the number of its query. name: for errors."""

    query: int
    term: Term
    name: str


def _name(term: Term, query: Query) -> str:
    if term.image is not None:
        return source_name(term.image)
    for modality, source in term.members.items():
        return source_name(source, modality)
    return f'"{term.words}"' if query.terms else str(query)


def _encode_inputs(inputs: Sequence[Input], encoder: Encoder) -> list[Encoded]:
    """What the encoder makes of each input, BATCH of one modality at a time."""
    rows: dict[int, Encoded] = {}
    found = dict.fromkeys(entry.term.modality for entry in inputs)
    for modality in sorted(found, key=lambda name: (name != TEXT, name != IMAGE)):
        numbers = [n for n, entry in enumerate(inputs) if entry.term.modality == modality]
        for some in _batches(numbers):
            items = [item_of(inputs[number].term, encoder) for number in some]
            names = [inputs[number].name for number in some]
            encoded = encode_each(encoder.encode_queries, modality, items, names, encoder)
            rows.update(zip(some, encoded, strict=True))
    return [rows[number] for number in range(len(inputs))]


def item_of(term: Term, model: Preprocessor) -> Any:
    """What the model takes of a part of a query; UsageError where it does not take it."""
    if term.image is not None:
        return pixels_of(term.image, model)
    for modality, source in term.members.items():
        return member_of(modality, source, model)
    return text_of(term.words, model)


def _query_vector(query: Query, rows: Sequence[Encoded], encoder: Encoder) -> np.ndarray:
    """The vector (D,) of a query from what the encoder made of its inputs."""
    if query.terms:
        weights = [float(term.weight) for term in query.terms]
        return weighted_sum(np.concatenate([row.vectors for row in rows]), weights, str(query))
    if len(rows) == 1:
        return rows[0].vectors[0]
    parts = {term.modality: row for term, row in zip(query.inputs, rows, strict=True)}
    # In one order, as sums of floats depend on it.
    ordered = {name: parts[name] for name in encoder.modalities if name in parts}
    return _joint(ordered, query, encoder)


def weighted_sum(vectors: np.ndarray, weights: Sequence[float], name: str) -> np.ndarray:
    """The normalised weighted sum of unit vectors: (n, D) float32 -> (D,) float32, summed in
    float64. UsageError, with the query's name, where nothing but rounding is left of it."""
    share = np.array(weights, np.float64)
    share /= np.abs(share).max()  # weights may be of any size
    total = share @ vectors.astype(np.float64)
    if np.linalg.norm(total) < MIN_SUM * np.abs(share).sum():
        raise UsageError(
            name,
            expected="terms that do not cancel each other out",
            found="a weighted sum of about zero",
            do="change a weight or a term",
        )
    return (total / np.linalg.norm(total)).astype(np.float32)


def encode_each(
    encode: Encode, modality: str, items: Sequence[Any], names: Sequence[str], encoder: Encoder
) -> list[Encoded]:
    """Each item, encoded together by a method of the encoder. Where that fails they are encoded one
    by one, and UsageError says the name of the first that has no vector; EncoderError where the
    model itself is at fault."""

    def rows_of(some: Sequence[Any]) -> list[Encoded]:
        encoded = encode(modality, some)
        require_unit_vectors(encoded.vectors, len(some), encoder.dims[modality], modality)
        return [encoded.take(np.array([row])) for row in range(len(some))]

    try:
        return rows_of(items)
    except UsageError:  # the encoder's own word
        raise
    except Exception:  # noqa: BLE001  models raise anything; what it was is found below
        probe_encoder(encoder)
    rows = []
    for item, name in zip(items, names, strict=True):
        try:
            rows += rows_of([item])
        except Exception as error:
            raise query_refused(name, encoder, Fault.of(error, modality), modality) from error
    return rows


def _joint(parts: dict[str, Encoded], query: Query, encoder: Encoder) -> np.ndarray:
    """The joint vector (D,) of one query."""
    try:
        joint = encoder.encode_joint_queries(parts)
        width = encoder.dims.get(JOINT, max(encoder.dims.values()))
        return require_unit_vectors(joint, 1, width, JOINT)[0]
    except Exception as error:
        raise query_refused(str(query), encoder, Fault.of(error, JOINT)) from error


def explain_picture(
    source: PictureSource, text: str, model: ExplainingEncoder, method: str = DEFAULT
) -> Explanation:
    """Why a picture and a text have their score; UsageError where the picture cannot be read, or
    where the model does not take the two."""
    decoded = decoded_picture(source, model)
    try:
        (explanation,) = model.explain([decoded], [text], method)
    except ChiasmError:
        raise
    except Exception as error:  # Undecodable, by its own word, no memory, or anything
        name = f'{source_name(source)} "{text}"'
        raise query_refused(name, model, Fault.of(error, "explain")) from error
    return explanation


def query_refused(
    name: str, model: Preprocessor, fault: Fault, modality: str = IMAGE
) -> UsageError:
    """The error for an input, a query or what is asked of a picture, called `name`, that a model
    does not take. modality: of the input; either for a text or a picture."""
    small = fault.reason == "out_of_memory"
    other = "take other words or another picture"
    if modality not in (IMAGE, TEXT):
        other = f"take another {modality}"
    return UsageError(
        name,
        expected=f"what {model.name} takes",
        found=str(fault),
        do="free memory, or give less" if small else other,
    )


def text_of(words: str, model: Preprocessor) -> Any:
    """What the model takes of a query's text; UsageError where it takes none, or not this one."""
    require_modality(model, TEXT)
    try:
        return model.preprocess(TEXT, words)
    except Exception as error:  # Undecodable, by its own word, or anything
        raise query_refused(f'"{words}"', model, Fault.of(error, TEXT)) from error


def _batches(items: list[T]) -> list[list[T]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _given(vector: np.ndarray, dim: int) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # infinity is refused below
            vector = np.asarray(vector, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        vector = np.empty(0, np.float32)
    if vector.shape != (dim,) or not np.isfinite(vector).all() or not vector.any():
        raise UsageError(
            "query vector",
            expected=f"{dim} finite numbers, not all zero",
            found=f"shape {vector.shape}" if vector.shape != (dim,) else "zeros, NaN or infinity",
        )
    scaled, _ = given_vectors(vector[None], dim)
    return unit(scaled)[0]


def decoded_picture(source: PictureSource, model: Preprocessor) -> np.ndarray:
    """A query's picture as `Encoder.preprocess` takes it, uint8 (H, W, 3); UsageError where it
    cannot be read."""
    require_modality(model, IMAGE)
    try:
        decoded = decode(encoded_picture(source), DecodeSettings(), model.modalities[IMAGE].side)
    except Undecodable as error:
        found = f"{error.reason}: {error.detail}" if error.detail else error.reason
        raise UsageError(source_name(source), expected="a picture", found=found) from error
    return decoded.pixels


def pixels_of(source: PictureSource, model: Preprocessor) -> Any:
    """What the model takes of a query's picture; UsageError where that cannot be read, or where
    the model does not take it."""
    decoded = decoded_picture(source, model)
    try:
        return model.preprocess(IMAGE, decoded)
    except Exception as error:
        raise query_refused(source_name(source), model, Fault.of(error, IMAGE)) from error


def member_of(modality: str, source: MemberSource, model: Preprocessor) -> Any:
    """What the model takes of a query's sound or of a file of another modality; UsageError where
    that cannot be read, or where the model does not take it."""
    require_modality(model, modality)
    data, rate = encoded_file(source, modality), model.modalities[modality].rate
    name = source_name(source, modality)
    try:
        raw = data if rate is None else decode_sound(data, SoundSettings(), rate)
    except Undecodable as error:
        found = f"{error.reason}: {error.detail}" if error.detail else error.reason
        raise UsageError(name, expected="a sound", found=found) from error
    try:
        return model.preprocess(modality, raw)
    except Exception as error:
        raise query_refused(name, model, Fault.of(error, modality), modality) from error
