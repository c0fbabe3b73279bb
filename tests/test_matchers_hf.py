"""hf: matchers: BLIP and BLIP-2 for retrieval, against transformers called one pair at a time."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from conftest import make_shard
from conftest import samples as kept_samples
from encoding import preprocess
from family_differences import FLOAT32, PICTURES, TEXTS
from own_transformers import OWN
from PIL import Image
from random_families import ENCODERS, MATCHERS
from tiny_answerers import blip_folder

from chiasm.index import build_index, open_collection
from chiasm.jobs.config import compose
from chiasm.jobs.filter_shards import FilterRequest, filter_shards
from chiasm.pipeline.caption_filter import read_scores
from chiasm.pipeline.collection import Identity, create_or_check
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import (
    Matcher,
    huggingface_matchers,
    load_encoder,
    load_matcher,
    require_explainer,
)
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.resizing import by_pillow
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from chiasm.pipeline.storage import Folder

CAPTIONS = ["a red boat", "a cat", "two people in the street", "the moon over the sea"]
QUERY = "a big boat under the moon"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {kind: make(base / kind) for kind, make in MATCHERS.items()}


@pytest.fixture(params=MATCHERS, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def matcher(folders, kind):
    return load_matcher(f"hf:{folders[kind]}", FLOAT32)


@pytest.fixture(scope="module")
def own(folders, kind):
    return OWN[kind](folders[kind])


def log_odds(own, picture, text):
    """Of one pair, by transformers alone."""
    with torch.inference_mode():
        ((no, yes),) = own.logits(own.image_inputs([picture]), own.text_inputs([text]))
    return float(yes - no)


def every_pair(matcher):
    items = [preprocess(matcher, picture) for picture in PICTURES]
    pairs = np.array([(i, j) for j in range(len(TEXTS)) for i in range(len(items))])
    return ("image", items), ("text", list(TEXTS)), pairs


def test_scores_differ_from_pair_to_pair(matcher):
    """That they are those of the model called directly: test_families.py."""
    assert isinstance(matcher, Matcher) and matcher.fingerprint
    scores = matcher.match(*every_pair(matcher))
    assert scores.dtype == np.float32 and np.diff(np.sort(scores)).min() > 1e-6 < scores.std()


def test_a_picture_is_seen_once_and_blocks_change_nothing(matcher, monkeypatch):
    pictures, texts, pairs = every_pair(matcher)
    whole = matcher.match(pictures, texts, pairs)
    monkeypatch.setattr(huggingface_matchers, "PICTURES", 2)
    monkeypatch.setattr(huggingface_matchers, "PAIRS", 3)
    seen = []
    hook = matcher._parts.network.vision_model.register_forward_hook(
        lambda _module, _given, made: seen.append(len(made.last_hidden_state))
    )
    try:
        some = pairs[pairs[:, 0] != 3]
        turned = matcher.match(texts, pictures, some[:, ::-1])
    finally:
        hook.remove()
    assert seen == [2, 2]
    np.testing.assert_allclose(turned, whole[pairs[:, 0] != 3], atol=1e-6)
    assert matcher.match(pictures, texts, pairs[:0]).shape == (0,)


def test_bfloat16_is_close(folders, kind, matcher):
    half = load_matcher(f"hf:{folders[kind]}", EncoderSettings(precision="bfloat16", device="cpu"))
    assert half.fingerprint == matcher.fingerprint
    made, wanted = half.match(*every_pair(half)), matcher.match(*every_pair(matcher))
    assert 1e-5 < np.abs(made - wanted).max() < 0.1


def test_a_blip_is_an_encoder_that_also_matches(folders):
    encoder = load_encoder(f"hf:{folders['blip-itm']}", FLOAT32)
    matcher = load_matcher(f"hf:{folders['blip-itm']}", FLOAT32)
    assert encoder.fingerprint == matcher.fingerprint and isinstance(encoder, Matcher)
    with pytest.raises(UsageError, match="expected one that explains its scores, found one that"):
        require_explainer(encoder)


def test_what_does_not_match_says_so(tmp_path):
    clip = ENCODERS["clip"](tmp_path / "clip")
    with pytest.raises(UsageError, match="found one that makes vectors only; take pocket, a mod"):
        load_matcher(f"hf:{clip}", FLOAT32)
    with pytest.raises(EncoderError, match=r"^matcher hf:.*expected a matcher: Blip.* answers"):
        load_matcher(f"hf:{blip_folder(tmp_path / 'captions')}", FLOAT32)


def test_a_blip2_whose_processor_adds_a_token_for_pictures(folders, tmp_path):
    """The weights have no row for it, and it is never looked up."""
    folder = shutil.copytree(folders["blip2-itm"], tmp_path / "newer")
    processor = transformers.Blip2Processor(
        transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
        transformers.AutoTokenizer.from_pretrained(folder),
        num_query_tokens=4,
    )
    processor.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["image_token_index"] = config["qformer_config"]["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    matcher, own = load_matcher(f"hf:{folder}", FLOAT32), OWN["blip2-itm"](folder)
    inputs = processor(images=PICTURES[0], text="a red boat", return_tensors="pt")
    assert (inputs["input_ids"] == config["image_token_index"]).sum() == 4
    with torch.inference_mode():
        ((no, yes),) = own.logits(
            {"pixel_values": inputs["pixel_values"]},
            {name: inputs[name] for name in ("input_ids", "attention_mask")},
        )
    with by_pillow():  # as its own processor
        pixels = [preprocess(matcher, PICTURES[0])]
    made = matcher.match(("image", pixels), ("text", ["a red boat"]), np.array([[0, 0]]))
    assert made == pytest.approx(float(yes - no), abs=1e-6)


@pytest.fixture(scope="module")
def collection(folders, tmp_path_factory):
    """Four photographs, embedded by a BLIP."""
    root = tmp_path_factory.mktemp("reranked")
    make_shard(root / "s-00000.tar", len(CAPTIONS), captions=CAPTIONS, seed=3)
    encoder = load_encoder(f"hf:{folders['blip-itm']}", FLOAT32)
    folder = Folder(str(root / "c"))
    create_or_check(folder, Identity.of(encoder), "test")
    (shard,) = list_shards([str(root / "s-00000.tar")])
    embed_shard(shard, encoder, folder, EmbedSettings(), run_id="test")
    build_index(str(root / "c"))
    return open_collection(root / "c", encoding=FLOAT32)


def test_reranking_adds_the_score_before_to_the_log_odds(collection, folders, kind, own):
    stage = {"blip-itm": "match", "blip2-itm": f"hf:{folders['blip2-itm']}"}[kind]
    plain = collection.search(QUERY, k=4)
    again = collection.search(QUERY, k=4, rerank=f"{stage}:3")
    wanted = {
        hit.id: hit.score + log_odds(own, Image.open(io.BytesIO(hit.picture())), QUERY)
        for hit in plain[:3]
    }
    assert np.diff(sorted(wanted.values())).min() > 1e-4, "no near ties"
    assert [hit.id for hit in again[:3]] == sorted(wanted, key=lambda id: -wanted[id])
    for hit in again[:3]:
        assert hit.scores[stage] == pytest.approx(wanted[hit.id], abs=1e-5)


def test_a_filter_scores_by_the_model(folders, tmp_path, kind, own):
    make_shard(tmp_path / "s.tar", len(CAPTIONS), captions=CAPTIONS, seed=3)
    (shard,) = list_shards([str(tmp_path / "s.tar")])
    settings = compose("laptop", ["encoder.device=cpu", "encoder.precision=float32"])
    settings = replace(settings, filter=replace(settings.filter, threshold=-100.0))
    name = f"hf:{folders[kind]}"
    filter_shards(FilterRequest([shard], str(tmp_path / "to"), name, settings))
    scores = {one.key: one.logits for one in read_scores(shard, Folder(str(tmp_path / "to")))}
    samples = list(kept_samples(read_samples(shard, ReadSettings())))
    assert len(scores) == len(samples) == len(CAPTIONS)
    for sample in samples:
        picture = decode(sample.picture, DecodeSettings(), None).image
        wanted = log_odds(own, picture, sample.captions[0])
        assert scores[sample.key] == (pytest.approx(wanted, abs=1e-4),)


def test_at_the_prompt(chiasm, folders, tmp_path, kind, own):
    PICTURES[0].save(tmp_path / "a.png")
    where = tmp_path / "a.png", "a red boat", "--encoder", f"hf:{folders[kind]}"
    sets = "--set", "encoder.precision=float32", "--set", "decode.exact=true"
    done = chiasm("match", *where, "--json", *sets)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    wanted = log_odds(own, PICTURES[0], "a red boat")
    assert record["logit"] == pytest.approx(wanted, abs=1e-5)
    assert record["probability"] == pytest.approx(1 / (1 + np.exp(-wanted)), abs=1e-5)
    assert (record["cosine"] is None) == (kind == "blip2-itm")
