"""A batch -> its vectors, and the samples that the encoder does not take.

A batch goes through the encoder as a whole. Where that fails, because the encoder raises or a
vector is no unit vector, the batch is halved, and its halves, until the samples are found that fail
alone. Only these are dropped. The others are then encoded once more together, so that the bytes of
a row depend on the rows that it is written with, and on nothing that was dropped or on how that was
found. Only a batch that fails as a whole and in no part (no memory for so many, inputs that do not
go together) keeps the vectors of its parts: they may differ from those of the whole by rounding.

A model that takes no sample is at fault itself: it ends the run instead of dropping everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import (
    JOINT,
    Encoded,
    Encoder,
    Fault,
    joined_tokens,
    joins,
    probe_encoder,
    require_unit_vectors,
    scatter_tokens,
    token_dims,
)
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.records import (
    TEXT,
    Batch,
    Decoded,
    Dropped,
    Embedded,
    Note,
    TokenColumn,
    VectorColumn,
)
from chiasm.pipeline.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class Piece:
    """What became of consecutive rows of a batch. cut: (n,) int64, of the tokens of each caption
    those that the model does not see. tokens: by modality."""

    columns: Mapping[str, VectorColumn]
    cut: np.ndarray
    tokens: Mapping[str, TokenColumn]


STAGE = "encode"  # of a dropped sample
# Samples of a shard that an encoder may refuse before it takes one. A source of bad pictures may
# well fill the beginning of a shard; that many are more likely a model that does not fit the data.
MOST_REFUSED = 256


def encode(batch: Batch, encoder: Encoder, clock: Stopwatch, where: str = "") -> Embedded:
    """A batch through the model, modality by modality; then the joint vectors of the rows that
    have what these are made of. A row without a modality has no vector there.

    where: the shard's name, for errors. Raises EncoderError for a model that takes no sample."""
    rows, faults = batch.rows, dict[int, Fault]()  # by the row's number in the batch
    numbers = list(range(len(rows)))
    while True:
        pieces, found = _encode_in_halves([rows[n] for n in numbers], encoder, clock)
        faults |= {numbers[place]: fault for place, fault in found.items()}
        numbers = [number for number in numbers if number not in faults]
        if not found or not numbers:
            break
    if rows and not numbers:
        _require_a_sound_model(rows, list(faults.values()), encoder, where)
    refused = (
        (
            Dropped(rows[number].key, STAGE, faults[number].reason, faults[number].detail),
            tuple(rows[number].missing.values()),
        )
        for number in sorted(faults)
    )
    kept = Batch([rows[number] for number in numbers])
    columns = _joined([piece.columns for piece in pieces]) if numbers else {}
    notes = _notes(kept, pieces) if numbers else ()
    tokens = joined_tokens([piece.tokens for piece in pieces], [len(piece.cut) for piece in pieces])
    return Embedded(kept, columns, tuple(refused), notes, tokens if numbers else {})


def _notes(batch: Batch, pieces: Sequence[Piece]) -> tuple[Note, ...]:
    """A note for each row whose caption is longer than the model takes."""
    cut = np.concatenate([piece.cut for piece in pieces])
    return tuple(
        Note(batch.rows[row].key, "text_truncated", f"the last {cut[row]} tokens of its caption")
        for row in np.flatnonzero(cut).tolist()
    )


def require_some_taken(tally: Tally, encoder: Encoder, where: str) -> None:
    """Raise EncoderError where an encoder took no sample of a shard so far, and either fails its
    trial too or refused MOST_REFUSED of them."""
    refused = 0 if tally.rows else tally.dropped_in(STAGE)
    if not refused:
        return
    probe_encoder(encoder)
    if refused >= MOST_REFUSED:
        last = next(drop for drop in reversed(tally.dropped) if drop.stage == STAGE)
        raise EncoderError(
            f"encoder {encoder.name}",
            expected=f"vectors for some samples of {where}",
            found=f"none for {refused}, such as {last.key}: {last.reason}: {last.detail}",
            do="take another encoder, or leave this shard out",
        )


def _encode_in_halves(
    rows: Sequence[Decoded], encoder: Encoder, clock: Stopwatch
) -> tuple[list[Piece], dict[int, Fault]]:
    """What became of consecutive parts of `rows`, all of them in one part where that works; and
    the faults of those that fail alone, by their place. Depth first: a part's memory is free
    before the next one begins."""
    pieces: list[Piece] = []
    faults: dict[int, Fault] = {}
    spans = [(0, len(rows))]
    while spans:
        start, end = spans.pop()
        try:
            pieces.append(_encode_together(rows[start:end], encoder, clock))
            continue
        except Exception as error:  # noqa: BLE001  models raise anything
            fault = Fault.of(error)
        # Here the exception is gone, and with it the tensors of the batch that its frames held.
        if end - start == 1:
            faults[start] = fault
        else:
            middle = (start + end) // 2
            spans += [(middle, end), (start, middle)]
    return pieces, faults


def _encode_together(rows: Sequence[Decoded], encoder: Encoder, clock: Stopwatch) -> Piece:
    """These rows in one pass; raises what the encoder raises, and Fault."""
    columns: dict[str, VectorColumn] = {}
    tokens: dict[str, TokenColumn] = {}
    widths, cut = token_dims(encoder), np.zeros(len(rows), np.int64)
    encoded: dict[str, tuple[np.ndarray, Encoded]] = {}  # modality -> its rows, and what they gave
    for modality in encoder.modalities:
        having = np.flatnonzero([modality in row.inputs for row in rows])
        if not len(having):
            continue
        items = [rows[number].inputs[modality] for number in having.tolist()]
        with clock.stage(f"encode {modality}"), _naming(modality):
            encoded[modality] = (having, encoder.encode(modality, items))
            vectors = encoded[modality][1].vectors
            columns[modality] = _scatter(vectors, having, len(rows), encoder, modality)
            if modality in widths:
                found, width = encoded[modality][1], widths[modality]
                tokens[modality] = scatter_tokens(found, having, len(rows), width, modality)
            tokens_cut = encoded[modality][1].tokens_cut
            if modality == TEXT and tokens_cut is not None:
                cut[having] = tokens_cut
    for having, parts in _groups(encoded, len(rows), encoder):
        with clock.stage("fuse"), _naming(JOINT):
            joint = _scatter(encoder.encode_joint(parts), having, len(rows), encoder, JOINT)
            columns[JOINT] = _merged(columns[JOINT], joint) if JOINT in columns else joint
    return Piece(columns, cut, tokens)


def _groups(
    encoded: Mapping[str, tuple[np.ndarray, Encoded]], size: int, encoder: Encoder
) -> Iterator[tuple[np.ndarray, dict[str, Encoded]]]:
    """Rows of the same modalities that have a joint vector: their numbers (n,), and what was made
    of them by modality. encoded: the numbers of the rows of each modality, and what they gave."""
    has = np.zeros((size, len(encoded)), bool)
    for place, (theirs, _) in enumerate(encoded.values()):
        has[theirs, place] = True
    for pattern in np.unique(has, axis=0):
        names = {name for name, there in zip(encoded, pattern, strict=True) if there}
        if joins(encoder, names):
            having = np.flatnonzero((has == pattern).all(axis=1))
            yield (
                having,
                {
                    modality: part.take(np.searchsorted(theirs, having))
                    for modality, (theirs, part) in encoded.items()
                    if modality in names
                },
            )


def _merged(one: VectorColumn, other: VectorColumn) -> VectorColumn:
    """Two columns, of which no row has both."""
    return VectorColumn(one.vectors + other.vectors, one.has | other.has)


@contextmanager
def _naming(part: str) -> Iterator[None]:
    """What is raised becomes a Fault that names the modality or column."""
    try:
        yield
    except Exception as error:
        raise Fault.of(error, part) from error


def _scatter(
    vectors: np.ndarray, rows: np.ndarray, size: int, encoder: Encoder, column: str
) -> VectorColumn:
    """The vectors (n, D) of `rows` (n,) at their places among zeros: (size, D) float32. Raises
    Fault where they are no unit vectors."""
    dim = encoder.dims[column]
    scattered = np.zeros((size, dim), dtype=np.float32)
    scattered[rows] = require_unit_vectors(vectors, len(rows), dim, column)
    has = np.zeros(size, dtype=bool)
    has[rows] = True
    return VectorColumn(scattered, has)


def _joined(pieces: Sequence[Mapping[str, VectorColumn]]) -> Mapping[str, VectorColumn]:
    """The columns of consecutive parts as one. A part in which no row has a column lacks it."""
    if len(pieces) == 1:
        return pieces[0]
    sizes = [len(next(iter(piece.values())).has) for piece in pieces]
    dims = {name: column.vectors.shape[1] for piece in pieces for name, column in piece.items()}
    joined = {}
    for name, dim in dims.items():
        parts = [
            piece.get(name) or VectorColumn(np.zeros((size, dim), np.float32), np.zeros(size, bool))
            for piece, size in zip(pieces, sizes, strict=True)
        ]
        joined[name] = VectorColumn(
            np.concatenate([part.vectors for part in parts]),
            np.concatenate([part.has for part in parts]),
        )
    return joined


def _require_a_sound_model(
    rows: Sequence[Decoded], faults: Sequence[Fault], encoder: Encoder, where: str
) -> None:
    """Raise EncoderError where it is not the samples' fault that the encoder took none of a batch:
    it takes no other pair either, or has no memory for any of several."""
    samples = f"sample {rows[0].key}" if len(rows) == 1 else f"{rows[0].key} to {rows[-1].key}"
    at = f"{samples} of {where}" if where else samples
    try:
        probe_encoder(encoder)
    except EncoderError as error:
        raise EncoderError(
            error.what, expected=error.expected, found=f"{error.found} (at {at})", do=error.do
        ) from error
    if len(rows) > 1 and all(fault.reason == "out_of_memory" for fault in faults):
        raise EncoderError(
            f"encoder {encoder.name}",
            expected=f"memory for the forward pass of one sample, {at}",
            found=faults[-1].detail,
            do="free memory, or take a smaller model or another --device",
        )
