"""A model is given one pair when it is loaded: two texts of different length, two pictures.

What is wrong with the model itself is found here, in one line, before a shard is read: a tokenizer
without a padding token, vectors of another width than it says, NaN for everything. It costs one
forward pass of two small pictures, two texts and their joint vectors; docs/results.md has figures.
Modalities other than pictures and texts are not probed: nobody but their encoder knows their bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chiasm.pipeline.encoders.faults import Fault, match_checked, require_unit_vectors
from chiasm.pipeline.encoders.protocols import JOINT, Encoded, Encoder, Matcher, Preprocessor
from chiasm.pipeline.errors import ChiasmError, EncoderError, Undecodable
from chiasm.pipeline.pretrained import mend_model
from chiasm.pipeline.records import IMAGE, TEXT

TEXTS = ("a", "a red square beside a blue one, seen from above")


def probe_encoder(encoder: Encoder) -> None:
    """Raise EncoderError where the encoder does not give unit vectors of its widths for two texts
    and two pictures."""
    encoded: dict[str, Encoded] = {}
    part = ""
    try:
        for modality, raws in _inputs().items():
            part = modality
            items = _preprocessed(encoder, modality, raws)
            if items is not None:
                encoded[modality] = encoder.encode(modality, items)
                require_unit_vectors(
                    encoded[modality].vectors, len(items), encoder.dims[modality], modality
                )
        part = JOINT
        if JOINT in encoder.dims and encoded.keys() == encoder.modalities.keys():
            joint = encoder.encode_joint(encoded)
            require_unit_vectors(joint, len(TEXTS), encoder.dims[JOINT], JOINT)
    except ChiasmError:
        raise
    except Exception as error:
        fault = Fault.of(error, part)
        raise EncoderError(
            f"encoder {encoder.name}",
            expected="unit vectors for two texts and two pictures, as a trial",
            found=fault.detail,
            do=_advice(fault, encoder),
        ) from error


def probe_matcher(matcher: Matcher) -> None:
    """Raise EncoderError where the matcher does not score two texts with two pictures."""
    try:
        sides = {
            modality: _preprocessed(matcher, modality, raws) for modality, raws in _inputs().items()
        }
        pictures, texts = sides[IMAGE], sides[TEXT]
        if pictures is not None and texts is not None:
            pairs = np.array([(0, 0), (1, 1)])
            match_checked(matcher, (IMAGE, pictures), (TEXT, texts), pairs)
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


def _inputs() -> dict[str, tuple[Any, Any]]:
    """Two texts, and two small pictures of different shape, with structure in every channel."""
    y, x = np.mgrid[0:64, 0:96]
    wide = np.stack([2 * x, 3 * y, 255 - x - y], axis=-1).astype(np.uint8)
    return {IMAGE: (wide, np.ascontiguousarray(wide[:, 16:80].transpose(1, 0, 2))), TEXT: TEXTS}


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
