"""Every family of every door against its own library called directly, and every kind of folder
that is refused. `python -m benchmarks.families` prints the same as tables."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import random_families
from families import FAMILIES
from family_differences import FLOAT32, RAW, TEXTS, differences
from own_transformers import Lowercased
from refused_folders import REFUSED, folder_of, line_of

from chiasm.pipeline.encoders import load_encoder, load_matcher, unit
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings

BFLOAT16 = EncoderSettings(precision="bfloat16", device="cpu")
MATCHERS_ALONE = ("hf blip2-itm", "st cross-encoder")
ENCODERS = [name for name in FAMILIES if name not in MATCHERS_ALONE]
# Several `st:` share a module, which makes rows independent of a batch, and casts.
ONE_OF_A_KIND = [
    name
    for name in ENCODERS
    if name not in ("st siglip", "st routed", "st llava-next", "st clap and clip", "st colpali")
]
# The width in which what is compared has to differ: random weights of towers tell texts apart less.
LEAST_DISTANCE = 1e-3


class Made:
    """Folders, models and libraries, each made once."""

    def __init__(self, root):
        self.root = root
        self.folder = functools.cache(self._folder)
        self.own = functools.cache(lambda name: FAMILIES[name].own(self.folder(name)))
        self.model = functools.cache(lambda name: self.load(name, FLOAT32))
        self.rows = functools.cache(self._rows)

    def _folder(self, name):
        return FAMILIES[name].make(self.root / name)

    def load(self, name, settings):
        load = load_matcher if name in MATCHERS_ALONE else load_encoder
        return load(f"{FAMILIES[name].door}:{self.folder(name)}", settings)

    def _rows(self, name):
        """(items, rows) of each modality."""
        encoder = self.model(name)
        items = {
            modality: [encoder.preprocess(modality, raw_of(modality, one)) for one in RAW[modality]]
            for modality in encoder.modalities
        }
        return {
            modality: (some, tokens_of(encoder.encode(modality, some)))
            for modality, some in items.items()
        }


def raw_of(modality, one):
    return one if modality == "text" else np.asarray(one)


def tokens_of(encoded):
    """The rows, or those of all tokens."""
    return encoded.vectors if encoded.tokens is None else encoded.tokens.values


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_scores_and_inputs_are_those_of_the_models_own_library(made, name):
    found = differences(made.model(name), made.own(name))
    exact = [found.text, found.seen, found.joint, found.matching, found.query]
    numbers = [number for number in exact if number is not None]
    assert numbers and max(numbers) <= 1e-6
    assert found.inputs <= 0.05
    assert found.cosine is None or found.cosine >= 0.9999
    assert (found.cosine is None) == (name in MATCHERS_ALONE)


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_vectors_differ_and_do_not_depend_on_their_neighbours(made, name):
    for modality, (items, rows) in made.rows(name).items():
        encode = functools.partial(made.model(name).encode, modality)
        alone = np.concatenate([tokens_of(encode([item])) for item in items])
        np.testing.assert_allclose(rows, alone, atol=5e-6)
        vectors = encode(items).vectors
        distances = np.linalg.norm(vectors[:, None] - vectors, axis=2) + np.eye(len(vectors))
        assert distances.min() > LEAST_DISTANCE, modality


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_bfloat16_is_close_and_comes_back_as_unit_float32(made, name):
    encoder = made.load(name, BFLOAT16)
    assert (encoder.precision, encoder.device) == ("bfloat16", "cpu")
    assert encoder.fingerprint == made.model(name).fingerprint
    for modality, (items, wanted) in made.rows(name).items():
        encoded = encoder.encode(modality, items)
        assert encoded.vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(encoded.vectors, axis=1), 1, atol=1e-6)
        found = tokens_of(encoded)
        assert (unit(found) * wanted).sum(1).min() > 0.998
        assert np.abs(found - wanted).max() > 1e-6  # it did run in bfloat16


@pytest.mark.parametrize("name", [f"hf {name}" for name in random_families.ENCODERS])
def test_tokens_that_are_cut_off_are_counted(made, name):
    own, encoder = made.own(name), made.model(name)
    texts = [*TEXTS, "a boat " * 31, "</s> [SEP] a " * 40, "boat <|endoftext|> cat " * 40, ""]
    read = [text.lower() if isinstance(own, Lowercased) else text for text in texts]
    whole = [len(own.tokenizer(text)["input_ids"]) for text in read]
    cut = encoder.encode("text", texts).tokens_cut
    assert cut.dtype == np.int64
    assert cut.tolist() == [max(0, length - own.longest) for length in whole]
    assert 0 < np.count_nonzero(cut) < len(cut)


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_of_another_kind_is_refused_in_one_line(made, tmp_path, name):
    kind = REFUSED[name]
    folder = folder_of(kind, tmp_path / "model", made.folder)
    line = line_of(kind, folder)
    assert line.startswith(f"encoder {kind.door}:FOLDER: expected ") and kind.says in line
    assert "\n" not in line
    if kind.door == "hf" and kind.family not in MATCHERS_ALONE:  # by the door of matchers too
        with pytest.raises((EncoderError, UsageError)):
            load_matcher(f"hf:{folder}", FLOAT32)
