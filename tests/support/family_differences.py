"""How far the vectors and scores of an encoder or a matcher are from those of the model's own
library, called directly on the same input; and how far that input is from the one that the
library's own processor makes. For tests, and for a table."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from tiny_shards import jpeg
from tiny_sounds import RATE, encoded, tone

from chiasm.pipeline.encoders import Encoded, normalized_mean, unit
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.images import decode as decode_picture
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.sounds import SoundSettings
from chiasm.pipeline.sounds import decode as decode_sound

FLOAT32 = EncoderSettings(precision="float32", device="cpu")
TEXTS = (
    "a red boat under the moon",
    "cat",
    "a photo of " * 60,
    "红色的船",
    "two people, 2!",
    "Two CATS on the Street",
)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(picture: Image.Image) -> bytes:
    """The bytes of a file of this picture."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


PICTURES = tuple(noise(w, h, w) for w, h in [(70, 50), (50, 70), (33, 33), (200, 20), (5, 9)])
# Shorter, as long and longer than the tiny models take.
SOUNDS = tuple(tone(150 + 200 * n, n / 4, seed=n) for n in (1, 4, 9))
RAW: dict[str, Sequence[Any]] = {"image": PICTURES, "sound": SOUNDS, "text": TEXTS}
FILES = {
    "image": (*map(png, PICTURES), jpeg(random.Random(0), 320)),
    "sound": tuple(map(encoded, SOUNDS)),
}


@dataclass(frozen=True)
class Differences:
    """The largest of any element: of unit vectors of texts, of what is seen or heard, of pairs and
    of queries, where these are not the vectors of rows; matching of scores; None where a model has
    none. inputs: the mean of what goes into the tower, of 255; of sounds in dB. cosine: the least,
    from the bytes of files to vectors, each side by its own processing."""

    text: float | None
    seen: float | None
    joint: float | None
    matching: float | None
    query: float | None
    inputs: float
    cosine: float | None


class Library:
    """A model as its own library runs it. seen: its modalities beside texts. captions: that are
    matched with pictures. joins, asks, matches:
    whether it has vectors of pairs, a way of its own to encode queries, and scores of pairs."""

    seen: tuple[str, ...] = ("image",)
    captions: tuple[str, ...] = TEXTS
    encodes, joins, asks, matches = True, True, False, False
    network: str  # what reads the weights
    reads: tuple[str, ...]  # the classes of it

    def made(self, model: Any, modality: str, items: Sequence[Any]) -> dict[str, Any]:
        """What an encoder or a matcher puts into its network of outputs of its `preprocess`."""
        raise NotImplementedError

    def inputs(self, modality: str, raw: Sequence[Any]) -> dict[str, Any]:
        """What the library's own processor makes of pictures or sounds."""
        raise NotImplementedError

    def level(self, model: Any, modality: str) -> float:
        """How many levels of 255, or dB, a step of 1 is in that input."""
        raise NotImplementedError

    def rows(self, modality: str, raw: Sequence[Any], inputs: dict[str, Any]) -> Any:
        """Of pictures or sounds, by a library that takes its inputs or what they are made of."""
        raise NotImplementedError

    def text_rows(self, texts: Sequence[str]) -> Any:
        raise NotImplementedError

    def joint(self, rows: Mapping[str, Any], raw: Mapping[str, Sequence[Any]]) -> Any:
        """Of pairs."""
        return normalized_mean(list(rows.values()))

    def queries(self, modality: str, raw: Sequence[Any]) -> Any:
        raise NotImplementedError

    def joint_queries(self, rows: Mapping[str, Any], raw: Mapping[str, Sequence[Any]]) -> Any:
        return normalized_mean(list(rows.values()))

    def score(self, picture: Image.Image, inputs: dict[str, torch.Tensor], text: str) -> float:
        """Of one pair; by inputs of one picture, or by itself."""
        raise NotImplementedError


@torch.inference_mode()
@capture_warnings()
def differences(model: Any, own: Library) -> Differences:
    """Of an encoder or a matcher and the same model as its library runs it."""
    items = {name: [model.preprocess(name, np.asarray(one)) for one in RAW[name]]
             for name in own.seen}  # fmt: skip
    made = {name: own.made(model, name, items[name]) for name in own.seen}
    inputs = max(
        _inputs(made[name], own.inputs(name, RAW[name])) * own.level(model, name)
        for name in own.seen
    )
    text = seen = joint = query = None
    if own.encodes:
        rows = {name: own.rows(name, RAW[name], made[name]) for name in own.seen}
        rows["text"] = own.text_rows(TEXTS)
        items["text"] = list(TEXTS)
        found = {name: _rows(model.encode(name, items[name])) for name in rows}
        text = _largest(found["text"], rows["text"])
        seen = max(_largest(found[name], rows[name]) for name in own.seen)
        if own.joins:
            joint = _joint(model.encode, model.encode_joint, items, own.joint, rows)
        if own.asks:
            query = _queries(model, own, items, found["text"])
    matching = _matching(model, own, items["image"], made["image"]) if own.matches else None
    cosine = _cosine_from_bytes(model, own) if own.encodes else None
    return Differences(text, seen, joint, matching, query, inputs, cosine)


def _joint(encode: Any, encode_joint: Any, items: Any, wanted: Any, rows: Any) -> float:
    """Of so many pairs as there are of each modality."""
    count = min(map(len, items.values()))
    parts = {name: encode(name, some[:count]) for name, some in items.items()}
    raw = {name: RAW[name][:count] for name in items}
    first = {name: some[:count] for name, some in rows.items()}
    return _largest(encode_joint(parts), wanted(first, raw))


def _queries(model: Any, own: Library, items: Any, documents: Any) -> float | None:
    """None where queries are encoded as what is searched."""
    rows = {name: own.queries(name, RAW[name]) for name in items}
    found = {name: _rows(model.encode_queries(name, items[name])) for name in items}
    largest = max(_largest(found[name], rows[name]) for name in items)
    if own.joins:
        joint = _joint(
            model.encode_queries, model.encode_joint_queries, items, own.joint_queries, rows
        )
        largest = max(largest, joint)
    same = [len(one) for one in found["text"]] == [len(one) for one in documents] and (
        _largest(found["text"], documents) < 1e-3
    )
    return None if same and largest <= 1e-6 else largest


def _matching(model: Any, own: Library, items: Sequence[Any], made: dict[str, Any]) -> float:
    """Three pictures with every text, on the library's side one pair at a time."""
    pairs = np.array([(i, j) for j in range(len(own.captions)) for i in range(3)])
    scores = model.match(("image", items), ("text", list(own.captions)), pairs)
    wanted = [
        own.score(
            PICTURES[i], {name: values[i : i + 1] for name, values in made.items()}, own.captions[j]
        )
        for i, j in pairs
    ]
    return _largest(scores, np.array(wanted))


def _inputs(made: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The mean difference of pixels or of a spectrogram; AssertionError where others differ."""
    (name,) = {"pixel_values", "input_features"} & made.keys()
    assert made.keys() <= wanted.keys()
    for other in made.keys() - {name}:
        np.testing.assert_array_equal(_flat(made[other]), _flat(wanted[other]))
    ours, theirs = _flat(made[name]), _flat(wanted[name])
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).mean())


def _flat(of_items: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.ravel(one) for one in of_items]).astype(np.float64)


def _cosine_from_bytes(model: Any, own: Library) -> float:
    """The least, of the files of each modality."""
    least = 1.0
    for name in own.seen:
        raw = [_opened(name, data) for data in FILES[name]]
        wanted = np.concatenate([*own.rows(name, raw, own.inputs(name, raw))])
        items = [model.preprocess(name, _decoded(model, name, data)) for data in FILES[name]]
        found = np.concatenate([*_rows(model.encode(name, items))])
        cosines = (found * wanted).reshape(-1, _width(model, name)).sum(1)
        least = min(least, float(cosines.min()))
    return least


def _width(model: Any, modality: str) -> int:
    return getattr(model, "token_dims", model.dims)[modality]


def _decoded(model: Any, modality: str, data: bytes) -> np.ndarray:
    """What shards are decoded to for this model."""
    if modality == "sound":
        return decode_sound(data, SoundSettings(), model.modalities["sound"].rate)
    picture = decode_picture(data, DecodeSettings(), model.modalities["image"].side)
    return np.asarray(picture.image)


def _opened(modality: str, data: bytes) -> Any:
    """The same by Pillow or soundfile alone."""
    if modality == "image":
        return Image.open(io.BytesIO(data)).convert("RGB")
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == RATE
    return samples


def _rows(encoded: Encoded) -> Any:
    """(B, D), or the tokens of each item."""
    tokens = encoded.tokens
    if tokens is None:
        return encoded.vectors
    return np.split(tokens.values, np.cumsum(tokens.lengths)[:-1])


def _largest(made: Any, wanted: Any) -> float:
    """Of any element."""
    assert [np.shape(one) for one in made] == [np.shape(one) for one in wanted]
    return max(float(np.abs(one - other).max()) for one, other in zip(made, wanted, strict=True))


def unit_rows(features: torch.Tensor) -> np.ndarray:
    """(B, D) unit rows of a library's features."""
    return unit(features.float().numpy())
