"""st: encoders of several vectors an item: prompts, pooling and options; that their tokens are the
library's: test_families.py."""

import numpy as np
import pytest
from PIL import Image
from random_models import clip_folder
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from tiny_llava import TOWER
from tiny_multi_vector import colpali_folder, multi_vector_folder

from chiasm.pipeline.encoders import load_encoder, multi_vector
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import capture_warnings

FLOAT32 = {"precision": "float32", "device": "cpu", "threads": 1}
TEXTS = ["a red boat", "b", "a photo of people standing in the street"]
PROMPTS = {"query": "find: ", "document": "read: ", "other": "so: "}


def noise(width, height):
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


PICTURES = [noise(70, 50), noise(50, 70), noise(33, 33)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "colpali": colpali_folder(tmp_path_factory.mktemp("colpali")),
        "prompts": multi_vector_folder(tmp_path_factory.mktemp("prompts"), PROMPTS),
    }


def library(folder):
    with capture_warnings():
        return MultiVectorEncoder(str(folder), device="cpu")


def encoder_of(folder, **options):
    return load_encoder(f"st:{folder}", EncoderSettings(**FLOAT32, **options))


def inputs(modality):
    if modality == "text":
        return TEXTS, [{"text": text} for text in TEXTS]
    return PICTURES, [{"image": Image.fromarray(picture)} for picture in PICTURES]


def test_queries_are_not_documents(folders):
    encoder = encoder_of(folders["prompts"])
    query = encoder.encode_queries("text", TEXTS).tokens.values
    assert np.abs(query - encoder.encode("text", TEXTS).tokens.values).max() > 0.01


def test_prompts_are_chosen_by_name_or_given_as_texts(folders):
    theirs = library(folders["prompts"])
    chosen = EncoderSettings(**FLOAT32, query_prompt="other", document_prompt="see: ")
    named = multi_vector.load(str(folders["prompts"]), chosen)
    expected = theirs.encode_query(TEXTS, prompt_name="other", convert_to_numpy=True)
    found = named.encode_queries("text", TEXTS).tokens.values
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)
    expected = theirs.encode_document(TEXTS, prompt="see: ", convert_to_numpy=True)
    found = named.encode("text", TEXTS).tokens.values
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)
    assert named.fingerprint != encoder_of(folders["prompts"]).fingerprint


@pytest.mark.parametrize("kind", ["colpali", "prompts"])
def test_tokens_that_a_text_loses_are_counted(folders, kind):
    """By the library: one that loses a token has the vectors of the text without its last word."""
    encoder = encoder_of(folders[kind])
    for encode in (encoder.encode, encoder.encode_queries):
        assert encode("text", TEXTS).tokens_cut.tolist() == [0] * len(TEXTS)
        short, long = encode("text", ["a" * 3000]), encode("text", ["a" * 3010])
        assert short.tokens_cut[0] > 0 and long.tokens_cut[0] == short.tokens_cut[0] + 10
        np.testing.assert_allclose(short.tokens.values, long.tokens.values, atol=1e-6)
    assert encoder.encode("image", [encoder.preprocess("image", PICTURES[0])]).tokens_cut is None


def test_documents_are_pooled_as_the_library_pools_and_queries_are_not(folders):
    whole, pooled = encoder_of(folders["colpali"]), encoder_of(folders["colpali"], pool_tokens=3)
    theirs = library(folders["colpali"])
    items, given = inputs("image")
    pool = HierarchicalTokenPooling(3)
    expected = theirs.encode_document(given, token_pooling=pool, convert_to_numpy=True)
    found = pooled.encode("image", items).tokens
    np.testing.assert_allclose(found.values, np.concatenate(expected), atol=1e-6)
    assert (found.lengths < whole.encode("image", items).tokens.lengths / 2).all()
    queries = [one.encode_queries("text", TEXTS).tokens.values for one in (whole, pooled)]
    np.testing.assert_array_equal(*queries)
    assert pooled.fingerprint != whole.fingerprint


def test_options_that_it_cannot_have_are_refused_in_one_line(folders, tmp_path):
    with pytest.raises(EncoderError, match=r"a vector for each token; leave encoder\.dims out"):
        encoder_of(folders["colpali"], dims=16)
    with pytest.raises(UsageError, match=r"encoder\.joint_weights"):
        encoder_of(folders["colpali"], joint_weights="image=2,text=1")
    clip = clip_folder(tmp_path / "clip", side=32, width=24, tower=TOWER, vision={"patch_size": 8})
    for name in (f"hf:{clip}", f"st:{clip}"):
        with pytest.raises(UsageError, match=r"encoder\.pool_tokens: expected an encoder"):
            load_encoder(name, EncoderSettings(**FLOAT32, pool_tokens=2))
