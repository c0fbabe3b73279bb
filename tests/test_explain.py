"""Explanations: the gradients against explicit attention, maps and words against a second way."""

from __future__ import annotations

import math
import threading
import unicodedata

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from random_families import ENCODERS
from torch import nn
from torch.nn import functional

from chiasm.pipeline.encoders import (
    explaining,
    load_encoder,
    require_explainer,
    require_matcher,
)
from chiasm.pipeline.encoders.explain_pocket import PocketMapper
from chiasm.pipeline.encoders.explain_two_tower import TwoTowerMapper
from chiasm.pipeline.encoders.words import align, sum_by_word, word_spans
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.attention import Attention
from chiasm.pipeline.model.checkpoint import SHIPPED, load_model
from chiasm.pipeline.model.explain import (
    Layer,
    attention_gradient,
    cosine_relevance,
    grad_eclip,
    gradients,
    inner_tokens,
    legrad,
    max_sim,
    pooled_relevance,
    record,
)
from chiasm.pipeline.model.pooling import Pool
from chiasm.pipeline.model.preprocess import covered, to_pixels
from chiasm.pipeline.model.tokenizer import normalise
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.resizing import by_pillow
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.world import Scene, Thing
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

CPU = EncoderSettings(device="cpu", precision="float32")
WIDTH, HEADS = 12, 3
REFUSED = ("align", "blip-itm", "dual-encoder", "flava", "groupvit")
MAKERS = {kind: make for kind, make in ENCODERS.items() if kind not in REFUSED}
SCENE = Scene(
    (
        Thing("boat", "red", "big", "plain", "bottom left"),
        Thing("star", "yellow", "small", "plain", "top right"),
        Thing("house", "blue", "big", "striped", "middle"),
    ),
    "snow",
)


def noise(width, height, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PICTURES = [noise(70, 50, 0), noise(40, 90, 1)]
TEXTS = ["a red BOAT, under the moon", "红色的船 İ two"]


def explicit(q, k, v, heads, mask=None):
    """Attention by its formula, on a matrix (B, H, T, S) that has a gradient -> output, matrix."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1).detach().requires_grad_()
    return (weights @ v).transpose(1, 2).flatten(2), weights


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return Attention(WIDTH, HEADS)


def score_of(output):
    """One score a row, of all of an output (B, T, D)."""
    return (output * torch.arange(output[0].numel()).view(output.shape[1:]).sin()).sum((1, 2))


def test_gradients_from_hooks_are_those_of_an_explicit_attention_matrix(attention):
    x, context = torch.randn(2, 4, WIDTH), torch.randn(2, 5, WIDTH)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])[:, None, None]
    with record([Layer.of(attention)]) as (site,):
        found = gradients(score_of(attention(x, context, mask)), [site])
    key, value = attention.key_value(context).chunk(2, -1)
    output, weights = explicit(attention.query(x), key, value, HEADS, mask)
    wanted = torch.autograd.grad(score_of(attention.out(output)).sum(), weights)[0]
    got = attention_gradient(site, found[0])
    assert got.shape == (2, HEADS, 4, 5)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    explained = mask[:, 0, 0]
    by_layer = legrad([site], found, explained)
    torch.testing.assert_close(by_layer, wanted.clamp(min=0).mean(1).sum(1) * explained)
    assert (by_layer[1, 3:] == 0).all()


def test_torchs_own_module_is_recorded_like_ours():
    torch.manual_seed(1)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).requires_grad_(False).eval()
    probe, tokens = torch.randn(2, 1, WIDTH), torch.randn(2, 5, WIDTH)
    with record([module]) as (site,):
        found = gradients(score_of(module(probe, tokens, tokens)[0]), [site])
    output, weights = explicit(site.query, site.key, site.value, HEADS)
    made = module.out_proj(output)
    torch.testing.assert_close(made, site.output.detach(), atol=1e-6, rtol=1e-5)
    wanted = torch.autograd.grad(score_of(made).sum(), weights)[0]
    torch.testing.assert_close(attention_gradient(site, found[0]), wanted, atol=1e-5, rtol=1e-4)


def relevance_by_loops(site, w, explained):
    """Grad-ECLIP's formula, number by number -> weights l (B, T, S), relevance (B, S)."""
    rows, queries, tokens = len(w), site.query.shape[1], site.value.shape[1]
    weights = np.zeros((rows, queries, tokens))
    for b in range(rows):
        places = [j for j in range(tokens) if explained[b, j]]
        for i in range(queries):
            q, k = site.query[b, i].numpy(), site.key[b].numpy()
            cosine = [k[j] @ q / np.linalg.norm(k[j]) / np.linalg.norm(q) for j in places]
            low, high = min(cosine), max(cosine)
            weights[b, i, places] = [(c - low) / (high - low) for c in cosine]
    products = np.einsum("bid,bjd->bij", w.numpy(), site.value.numpy())
    return weights, products


def test_grad_eclip_is_its_formula(attention):
    x = torch.randn(2, 5, WIDTH)
    explained = torch.tensor([[True] * 5, [False, True, True, True, False]])
    with record([Layer.of(attention)]) as (site,):
        (found,) = gradients(score_of(attention(x)), [site])
    weights, products = relevance_by_loops(site, found @ attention.out.weight.detach(), explained)
    got = grad_eclip(site, found, explained)
    np.testing.assert_allclose(got, (weights * products).sum(1), atol=1e-4)
    assert (got[~explained] == 0).all() and (got[explained] != 0).sum() >= 6


def test_the_mean_of_a_pooling_has_its_part():
    torch.manual_seed(2)
    pool, tokens = Pool(WIDTH, HEADS), torch.randn(2, 5, WIDTH)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    summed = {}
    pool.norm.register_forward_pre_hook(lambda _, given: summed.update(x=given[0]))
    with record([Layer.of(pool.attention)]) as (site,):
        score = score_of(pool(tokens, mask[:, None, None])[:, None])
        at_sum = torch.autograd.grad(score.sum(), summed["x"], retain_graph=True)[0]
        (found,) = gradients(score, [site])
    weights, products = relevance_by_loops(site, found @ pool.attention.out.weight.detach(), mask)
    weights /= weights.sum(-1, keepdims=True)
    of_mean = np.einsum("bd,bjd->bj", at_sum, tokens) / mask.sum(1, keepdim=True).numpy()
    wanted = ((weights * products).sum(1) + of_mean) * mask.numpy()
    np.testing.assert_allclose(pooled_relevance(site, found, mask, mask), wanted, atol=1e-4)


def test_what_other_threads_compute_is_not_recorded(attention):
    x = torch.randn(1, 4, WIDTH)
    with record([Layer.of(attention)]) as (site,):
        attention(x)
        mine = site.query
        other = threading.Thread(target=attention, args=(2 * x,))
        other.start()
        other.join()
        assert site.query is mine
    attention(3 * x)
    assert site.query is mine and not attention.out._forward_hooks


def test_max_sim_is_taken_apart_without_rest():
    cosines = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))
    explained = torch.tensor([[False, True, True, True, True, False], [False, True] + [False] * 4])
    found = max_sim(cosines, explained)
    assert (found.tokens[~explained] == 0).all()
    torch.testing.assert_close(found.patches.sum(1), (cosines.amax(2) * explained).sum(1))


@pytest.fixture(scope="module")
def pocket():
    return load_encoder("pocket", CPU)


@pytest.fixture(scope="module")
def model():
    return load_model(SHIPPED, torch.float32)


def test_the_cosine_is_steepest_along_the_gradient_that_is_used(model):
    """By finite differences of the pooled query's value, through the rest of the network."""
    network, tokenizer = model
    pixels = torch.from_numpy(to_pixels(picture(SCENE), 72))[None]
    ids = torch.from_numpy(tokenizer.batch(["a red boat"], 64))
    layer = network.image.pool.attention.out

    def cosine(shift):
        handle = layer.register_forward_hook(lambda _m, _i, made: made + shift)
        with torch.no_grad():
            image, text = network.encode_image(pixels)[1], network.encode_text(ids)[1]
        handle.remove()
        return float((image * text).sum())

    with record([Layer.of(network.image.pool.attention)]) as sites:
        image, text = network.encode_image(pixels)[1], network.encode_text(ids)[1]
        (found,) = gradients((image * text).sum(1), sites)
    step = 1e-2 * found / found.norm()
    slope = (cosine(step) - cosine(-step)) / (2 * step.norm())
    assert float(slope) == pytest.approx(float(found.norm()), rel=1e-2)


def test_padding_has_no_part_and_a_batch_is_what_single_pairs_are(model):
    network, tokenizer = model
    pixels = torch.from_numpy(np.stack([to_pixels(picture(SCENE), 72)] * 2))
    ids = torch.from_numpy(tokenizer.batch(["a red boat", "a house left of a yellow star"], 64))
    for over_layers in (False, True):
        both = cosine_relevance(network, pixels, ids, over_layers)
        assert (both.tokens[~inner_tokens(ids)] == 0).all()
        short = ids[:1, : int((ids[0] != 0).sum())]
        alone = cosine_relevance(network, pixels[:1], short, over_layers)
        torch.testing.assert_close(both.patches[:1], alone.patches, atol=1e-5, rtol=1e-3)
        same = both.tokens[:1, : short.shape[1]]
        torch.testing.assert_close(same, alone.tokens, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("text", "place"),
    [("a red boat", (2, 0)), ("一颗黄色的星星", (0, 2)), ("a blue house", (1, 1))],
)
@pytest.mark.parametrize("method", ["default", "grad-eclip", "legrad", "max-sim"])
def test_pocket_points_at_the_thing_that_is_named(pocket, text, place, method):
    (why,) = pocket.explain([np.asarray(picture(SCENE))], [text], method)
    assert why.patches.shape == (6, 6) and why.patches.dtype == np.float32
    assert why.patches.min() >= 0 and why.box == (0, 0, 1, 1)
    hottest = np.unravel_index(why.patches.argmax(), (6, 6))
    assert (hottest[0] // 2, hottest[1] // 2) == place


@pytest.mark.parametrize(
    ("text", "wrong"), [("a big green boat, in the snow", "green"), ("一座黑色的房子", "黑色的")]
)
def test_the_word_that_makes_a_text_false_is_the_lowest(pocket, text, wrong):
    (why,) = pocket.explain([np.asarray(picture(SCENE))], [text])
    lowest = min(why.words, key=lambda word: word.relevance)
    assert set(lowest.text) & set(wrong) == set(lowest.text) and lowest.relevance < 0
    assert why.logit is not None and why.logit < 0 and why.words_by == "erasure"


def test_erasure_is_what_matching_says_without_the_word(pocket):
    image, text = np.asarray(picture(SCENE)), "a red boat in the snow"
    (why,) = pocket.explain([image], [text])
    shorter = text.replace("boat", "")
    pairs = np.array([[0, 0], [0, 1]])
    items = [pocket.preprocess("image", image)]
    whole, without = require_matcher(pocket).match(
        ("image", items), ("text", [text, shorter]), pairs
    )
    boat = next(word for word in why.words if word.text == "boat")
    assert boat.relevance == pytest.approx(float(whole - without), abs=1e-4)
    assert why.logit == pytest.approx(float(whole), abs=1e-4)
    vectors = pocket.encode("image", items).vectors, pocket.encode("text", [text]).vectors
    assert why.score == pytest.approx(float((vectors[0] * vectors[1]).sum()), abs=1e-5)


def test_a_long_text_says_how_much_was_read(pocket):
    text = "a red boat and " * 30
    (why,) = pocket.explain([np.asarray(picture(SCENE))], [text])
    assert 0 < why.read < len(text) and why.words[-1].end <= why.read
    with pytest.raises(UsageError, match="expected a text with words to explain"):
        pocket.explain([np.asarray(picture(SCENE))], ["  "])


def test_an_unknown_method_is_refused_with_those_there_are(pocket):
    with pytest.raises(UsageError, match="expected one of default, grad-eclip, legrad, max-sim"):
        pocket.explain([np.asarray(picture(SCENE))], ["a boat"], "rollout")


@pytest.mark.parametrize("size", [(200, 80), (81, 300), (72, 72), (100, 99)])
def test_what_pocket_sees_of_a_picture_is_undone(size):
    image = Image.fromarray(noise(*size, 0)).resize(size)
    left, top, right, bottom = covered(*size, 72)
    box = (left * size[0], top * size[1], right * size[0], bottom * size[1])
    cut = image.resize((72, 72), Image.Resampling.BICUBIC, box)
    assert np.abs(np.asarray(cut).transpose(2, 0, 1) - to_pixels(image, 72).astype(int)).mean() < 4


def test_words_cover_a_text_in_either_language():
    text = "  夕阳下，一只big猫 sat, (quietly)!"
    tokens = [(2, 4), (4, 6), (6, 8), (8, 9), (9, 12), (12, 13)]
    words = [text[start:end] for start, end in word_spans(text, tokens)]
    assert words == ["夕阳", "下，", "一只", "big", "猫", "sat,", "(quietly)!"]


@settings(max_examples=30)
@given(st.text(max_size=40))
def test_words_cover_any_text(text):
    spans = word_spans(text, [(at, at + 1) for at in range(len(text))])
    covered_by = [at for start, end in spans for at in range(start, end)]
    assert covered_by == [at for at, each in enumerate(text) if not each.isspace()]


@settings(max_examples=30)
@given(st.text(max_size=30) | st.text("aA. \tΣİﬁ\u0301각ᄀ１。中", max_size=12))
def test_what_was_normalised_is_found_in_the_text(text):
    spans = align(text, normalise(text), lambda part: unicodedata.normalize("NFKC", part).lower())
    assert len(spans) == len(normalise(text))
    assert spans == sorted(spans) and all(start < end for start, end in spans)


@settings(max_examples=30)
@given(st.text(max_size=20) | st.text("ab 中\ufffd\U0001f600", max_size=8))
def test_tokens_lie_in_the_text_in_order(model, text):
    spans, read = PocketMapper(*model).token_spans(text)
    ids = model[1].encode(normalise(text))
    assert len(spans) == len(ids) and read == len(text) and spans == sorted(spans)


def test_a_token_in_two_words_is_shared_out():
    found = sum_by_word([(0, 2), (3, 5)], [(0, 2), (1, 4), (4, 5)], np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(found, [2, 5])
    assert sum_by_word([], [], np.zeros(0)).shape == (0,)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {kind: make(base / kind) for kind, make in MAKERS.items()}


@pytest.mark.parametrize("kind", MAKERS)
def test_clip_and_siglip_explain_pairs_one_by_one_as_together(folders, kind):
    encoder = require_explainer(load_encoder(f"hf:{folders[kind]}", CPU))
    for method in encoder.methods:
        together = encoder.explain(PICTURES, TEXTS, method)
        for number, why in enumerate(together):
            (alone,) = encoder.explain([PICTURES[number]], [TEXTS[number]], method)
            np.testing.assert_allclose(why.patches, alone.patches, atol=1e-5)
            np.testing.assert_allclose(
                [word.relevance for word in why.words],
                [word.relevance for word in alone.words],
                atol=1e-5,
            )
            grids = {"naflex": ((3, 5), (5, 3)), "clipseg": ((6, 6), (6, 6))}
            assert why.patches.shape == grids.get(kind, ((4, 4), (4, 4)))[number]
            assert why.patches.min() >= 0 and why.read == len(TEXTS[number])
            text = "".join(word.text for word in why.words)
            assert text == TEXTS[number].replace(" ", "")
    (cut,) = encoder.explain(PICTURES[:1], ["a red boat under a star " * 30], method)
    assert 0 < cut.read < 24 * 30


@pytest.mark.parametrize("kind", REFUSED)
def test_families_without_such_maps_are_refused_in_one_line(tmp_path, kind):
    with pytest.raises(UsageError, match="expected one that explains its scores, found one") as e:
        require_explainer(load_encoder(f"hf:{ENCODERS[kind](tmp_path)}", CPU))
    assert "\n" not in str(e.value)


def test_words_of_chinese_clip_by_legrad_are_the_gradients_of_its_own_attention(folders):
    encoder = require_explainer(load_encoder(f"hf:{folders['chinese-clip']}", CPU))
    (why,) = encoder.explain(PICTURES[:1], ["红色 boat"], "legrad")
    own = transformers.ChineseCLIPModel.from_pretrained(
        folders["chinese-clip"], attn_implementation="eager"
    )
    tokens = transformers.AutoTokenizer.from_pretrained(folders["chinese-clip"])
    made = own.text_model(**tokens("红色 boat", return_tensors="pt"), output_attentions=True)
    text = functional.normalize(own.text_projection(made.last_hidden_state[:, 0]), dim=-1)
    item = encoder.preprocess("image", PICTURES[0])
    image = torch.from_numpy(encoder.encode("image", [item]).vectors)
    slopes = torch.autograd.grad((image * text).sum(), made.attentions)
    inner = slice(1, 4)  # two signs and a word, between [CLS] and [SEP]
    wanted = sum(slope.clamp(min=0).mean(1).sum(1)[0, inner] / 3 for slope in slopes)
    found = [word.relevance for word in why.words]
    assert [word.text for word in why.words] == ["红", "色", "boat"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert min(found) > 1e-4


def test_clip_by_legrad_is_the_gradient_of_its_own_attention_matrices(folders):
    encoder = require_explainer(load_encoder(f"hf:{folders['clip']}", CPU))
    with by_pillow():
        (why,) = encoder.explain(PICTURES[:1], ["a red boat"], "legrad")
    own = transformers.CLIPModel.from_pretrained(folders["clip"], attn_implementation="eager")
    pixels = torch.from_numpy(encoder.preprocess("image", PICTURES[0]))[None]
    inputs = transformers.CLIPImageProcessorPil.from_pretrained(folders["clip"])(
        Image.fromarray(PICTURES[0]), return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == pixels.shape
    made = own.vision_model(**inputs, output_attentions=True)
    image = functional.normalize(own.visual_projection(made.pooler_output), dim=-1)
    text = torch.from_numpy(encoder.encode("text", ["a red boat"]).vectors)
    slopes = torch.autograd.grad((image * text).sum(), made.attentions)
    wanted = sum(slope.clamp(min=0).mean(1).sum(1)[0, 1:] / 16 for slope in slopes)
    np.testing.assert_allclose(why.patches, wanted.reshape(4, 4), atol=1e-5)
    assert why.patches.max() > 1e-3


def test_a_crop_of_clip_is_undone(folders):
    encoder = require_explainer(load_encoder(f"hf:{folders['clip']}", CPU))
    (why,) = encoder.explain(PICTURES[:1], ["a red boat"])
    # 70 x 50 becomes 50 x 36, of which the middle 32 x 32 is seen.
    np.testing.assert_allclose(why.box, (9 / 50, 2 / 36, 41 / 50, 34 / 36))


@pytest.mark.parametrize("method", ["grad-eclip", "legrad"])
def test_only_the_layers_that_a_method_reads_keep_a_graph(pocket, folders, method):
    clip = load_encoder(f"hf:{folders['clip']}", CPU)
    firsts = {pocket: pocket.network.image.blocks[0]}
    firsts[clip] = clip._network.vision_model.encoder.layers[0].mlp
    for encoder, first in firsts.items():
        kept = []
        hook = first.register_forward_hook(lambda _m, _i, made, kept=kept: kept.append(made))
        encoder.explain(PICTURES[:1], ["a red boat"], method)
        hook.remove()
        assert any(made.requires_grad for made in kept) == (method == "legrad")


def test_pairs_are_cut_into_blocks_by_the_cost_of_their_pictures(pocket, monkeypatch):
    passes, maps = [], PocketMapper.maps

    def counted(self, items, texts, method):
        passes.append(len(items))
        return maps(self, items, texts, method)

    monkeypatch.setattr(PocketMapper, "maps", counted)
    pictures, texts = [*PICTURES, PICTURES[0]], [*TEXTS, "a house"]
    together = pocket.explain(pictures, texts)
    item = pocket.preprocess("image", PICTURES[0])
    monkeypatch.setattr(explaining, "BLOCK_BYTES", 2 * pocket.cost("image", item) - 1)
    cut = pocket.explain(pictures, texts)
    assert passes == [3, 2, 1]
    for one, other in zip(together, cut, strict=True):
        np.testing.assert_allclose(one.patches, other.patches, atol=1e-5)


def two_tower_mapper(image_folder, text_folder):
    image, text = ImageTower(str(image_folder), CPU), TextTower(str(text_folder), CPU)
    torch.manual_seed(3)
    config = TwoTowerConfig(
        "", "", "", "", image.width, image.token_width, text.width, text.token_width,
        landmarks=4, text_landmarks=0, query_bank=0, words=3, dim=17,
    )  # fmt: skip
    network = TwoTowerNetwork(config).eval()
    return TwoTowerMapper(network, image, text), network, image, text


@pytest.mark.parametrize(
    ("kind", "options", "method", "works"),
    [
        ("Swin", {"window_size": 4}, "grad-eclip", True),
        ("Swin", {"window_size": 4}, "legrad", False),
        ("Swin", {"window_size": 2}, "grad-eclip", False),
        ("Swinv2", {"window_size": 4}, "hires-cam", True),
    ],
)
def test_image_towers_in_stages_are_explained_or_refused(
    towers, tmp_path, kind, options, method, works
):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], **options
    )
    getattr(transformers, f"{kind}Model")(config).eval().save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(tmp_path)
    mapper, _, image, _ = two_tower_mapper(tmp_path, towers[1])
    assert method in mapper.methods
    items = [image.preprocess(Image.fromarray(each)) for each in PICTURES]
    texts = ["red and blue", "a picture of green"]
    if not works:
        with pytest.raises(UsageError, match=f"^method {method}: expected attention over all tok"):
            mapper.maps(items, texts, method)
        return
    together = mapper.maps(items, texts, method).patches
    assert [each.shape for each in together] == [(4, 4)] * 2
    assert max(np.abs(each).max() for each in together) > 1e-5
    (alone,) = mapper.maps(items[1:], texts[1:], method).patches
    np.testing.assert_allclose(together[1], alone, atol=1e-5)


def test_two_towers_without_attention_add_up_to_the_slope_of_their_score(towers):
    mapper, network, image, text = two_tower_mapper(*towers)
    assert mapper.methods == ("default", "hires-cam")
    items = [image.preprocess(Image.fromarray(each)) for each in PICTURES]
    texts = ["red and blue", "a picture of green"]
    found = mapper.maps(items, texts, "hires-cam").patches
    with torch.no_grad():
        features = text(texts)
        words = network.text_vectors(features.pooled, network.bag_of_words(features.ids))
        pooled = image(items).pooled

        def score(factor):
            return (network.image_vectors(factor * pooled) * words).sum(1)

        slope = (score(1 + 1e-2) - score(1 - 1e-2)) / 2e-2
    np.testing.assert_allclose([each.sum() for each in found], slope, atol=2e-4)
    assert max(np.abs(each).max() for each in found) > 1e-4
