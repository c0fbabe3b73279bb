"""The functions for plain tensors: forms without parameters against numpy, and trained models."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.model import JointModel, joint_decoder, multi_head_attention, multimodal_fusion
from chiasm.pipeline.model.checkpoint import SHIPPED
from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ImageConfig,
    ModelConfig,
    TextConfig,
)
from chiasm.pipeline.model.frozen_joint import (
    FrozenJointConfig,
    FrozenJointNetwork,
    save_frozen_joint,
)
from chiasm.pipeline.model.joint import JointNetwork


def tokens(*shape, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=chance, dtype=torch.float64)


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attention(q, c, heads, seen=None):
    """softmax(q c^T / sqrt(d)) c, head by head; seen (B, T, S) bool."""
    width = q.shape[-1] // heads
    parts = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[..., part] @ c[..., part].swapaxes(1, 2) / np.sqrt(width)
        if seen is not None:
            scores = np.where(seen, scores, -np.inf)
        parts.append(softmax(scores) @ c[..., part])
    return np.concatenate(parts, axis=-1)


def test_attention_by_the_names_of_its_formula():
    q, k = tokens(2, 3, 8), tokens(2, 5, 8, seed=1)
    found = multi_head_attention(Q=q, K=k, V=k, num_heads=2)
    np.testing.assert_allclose(found, attention(q.numpy(), k.numpy(), 2), atol=1e-12)


def test_concat_add_and_mean_are_those_of_numpy():
    for text, image in (
        (tokens(4, 6), tokens(4, 6, seed=1)),
        (tokens(4, 3, 6), tokens(4, 3, 6, seed=1)),
    ):
        t, i = text.numpy(), image.numpy()
        concat = np.concatenate([t, i], axis=1)
        np.testing.assert_array_equal(multimodal_fusion(text, image), concat)
        np.testing.assert_array_equal(multimodal_fusion(text, image, "add"), t + i)
        np.testing.assert_array_equal(multimodal_fusion(text, image, fusion="mean"), (t + i) / 2)
    longer = tokens(4, 5, 6, seed=2)
    assert multimodal_fusion(tokens(4, 3, 6), longer, "concat").shape == (4, 8, 6)


@pytest.mark.parametrize("heads", [1, 2])
def test_fusion_by_attention_is_that_of_numpy(heads):
    text, image = tokens(2, 3, 8), tokens(2, 5, 8, seed=1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    t, i = text.numpy(), image.numpy()
    seen = np.broadcast_to(mask.numpy()[:, None], (2, 5, 3))
    expected = [t + attention(t, i, heads), i + attention(i, t, heads, seen)]
    found = multimodal_fusion(text, image, "attention", text_mask=mask, num_heads=heads)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-12)


@pytest.mark.parametrize("heads", [1, 4])
def test_the_decoder_without_parameters_is_that_of_numpy(heads):
    x, text, image = tokens(2, 4, 8), tokens(2, 3, 8, seed=1), tokens(2, 5, 8, seed=2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    seen = np.broadcast_to(mask.numpy()[:, None], (2, 4, 3))
    y = x.numpy()
    y = y + attention(y, y, heads, np.tril(np.ones((4, 4), bool))[None])
    y = y + attention(y, text.numpy(), heads, seen)
    y = y + attention(y, image.numpy(), heads)
    found = joint_decoder(x, text, image, text_mask=mask, num_heads=heads)
    np.testing.assert_allclose(found, y, atol=1e-12)


def test_a_trained_fusion_gives_what_the_joint_model_gives():
    model = JointModel.load("pocket")
    network, texts = model.network, ["a red boat at sea", "夜空下有一只猫"]
    pictures = [Image.new("RGB", (72, 72), color) for color in ("navy", "white")]
    both = [{"text": t, "image": p} for t, p in zip(texts, pictures, strict=True)]
    with torch.inference_mode():
        features = model.preprocess(both)
        expected = model(features)["sentence_embedding"]
        words, _ = network.encode_text(features["ids"])
        patches, _ = network.encode_image(features["pixels"])
        mask = features["ids"] != 0
        found = multimodal_fusion(words, patches, network, text_mask=mask)
        by_folder = multimodal_fusion(words, patches, str(SHIPPED), text_mask=mask)
        by_model = multimodal_fusion(words, patches, model, text_mask=mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(by_folder, expected)
    torch.testing.assert_close(by_model, expected)


def small_network(**changed):
    torch.manual_seed(0)
    config = ModelConfig(
        ImageConfig(side=36, stem=(8, 16), width=32, depth=1, heads=2),
        TextConfig(vocabulary=20, context=8, width=16, depth=1, heads=2),
        dim=8,
        fusion=None,
        decoder=DecoderConfig(width=16, depth=1, heads=2, context=6),
    )
    return JointNetwork(replace(config, **changed)).eval()


def test_a_trained_decoder_gives_what_its_model_gives():
    network = small_network()
    ids = torch.tensor([[1, 9, 8, 2], [1, 7, 2, 0]])
    text = network.text_modality(ids)
    image = network.image_modality(torch.randint(0, 256, (2, 3, 36, 36), dtype=torch.uint8))
    target = torch.tensor([[21, 4, 5], [22, 3, 3]])
    decoder = network.decoder
    assert decoder is not None
    hidden, _ = decoder(target, decoder.start(text, image))
    found = joint_decoder(target, text.tokens, image.tokens, network, text_mask=ids != 0)
    torch.testing.assert_close(found, decoder.logits(hidden, "text"))
    with pytest.raises(ValueError, match="expected a model that has one, found two towers alone"):
        multimodal_fusion(text.tokens, image.tokens, network)


def test_a_decoder_alone_gives_what_its_network_gives():
    network = small_network()
    target, text = torch.tensor([[21, 4, 5], [22, 3, 3]]), torch.randn(WORDS)
    image, mask = torch.randn(PATCHES), torch.ones(2, 5, dtype=torch.bool).tril(2)
    whole, alone = (
        joint_decoder(target, text, image, decoder, text_mask=mask)
        for decoder in (network, network.decoder)
    )
    assert torch.equal(whole, alone) and whole.shape == (2, 3, 20)
    with pytest.raises(ValueError, match=r"^image: expected .* here \(2, 9, 32\), found"):
        joint_decoder(target, text, image[:, :8], network.decoder)


def test_a_fusion_of_an_encoders_vectors_gives_what_its_network_gives(tmp_path):
    torch.manual_seed(0)
    network = FrozenJointNetwork(FrozenJointConfig("pocket", "f" * 32, 8, FUSION)).eval()
    torch.nn.init.normal_(network.fusion.residual.weight)
    save_frozen_joint(tmp_path, network)
    text, image = normalize(torch.randn(2, 3, 8), dim=-1)
    expected = network.fuse(network.text_modality(text), network.image_modality(image)).joint
    assert (expected - normalize(text + image, dim=-1)).norm(dim=-1).min() > 0.1
    for model in (network, tmp_path, str(tmp_path)):
        torch.testing.assert_close(multimodal_fusion(text, image, model), expected)
    for given, line in (
        (
            (text[:, :7], image),
            "text: expected vectors (B, E) of the encoder, here (1 or more, 8), found",
        ),
        (
            (text, image[:2]),
            "image: expected vectors (B, E) of the encoder, B of the text, here (3",
        ),
        ((text[:, None], image), "text: expected vectors (B, E) of the encoder"),
        ((text, 2 * image), "image: expected unit vectors, found norms of 2 to 2"),
        ((text * torch.nan, image), "text: expected unit vectors, found norms of nan to nan"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(line)}"):
            multimodal_fusion(*given, network)
    with pytest.raises(
        ValueError, match=r"^text_mask: expected none, fusion of vectors reads no m"
    ):
        multimodal_fusion(text, image, network, text_mask=MASK)
    for model in (network, tmp_path):
        with pytest.raises(ValueError, match="decoder: expected a model that has one, found a mo"):
            joint_decoder(torch.tensor([[21]]), text, image, model)


@pytest.mark.parametrize("form", ["concat", "add", "mean"])
@pytest.mark.parametrize("shape", [(2, 8), (2, 5, 8)])
def test_what_a_form_does_not_read_is_refused(form, shape):
    x = tokens(*shape)
    line = f"^text_mask: expected none, fusion {form} reads no mask, found one$"
    with pytest.raises(ValueError, match=line):
        multimodal_fusion(x, x, form, text_mask=MASK)
    with pytest.raises(ValueError, match=f"^num_heads: .* fusion {form} cuts no heads, found 2$"):
        multimodal_fusion(x, x, form, num_heads=2)


def test_heads_are_not_chosen_for_a_trained_model():
    network = small_network(fusion=FUSION)
    text, image, ids = torch.zeros(WORDS), torch.zeros(PATCHES), torch.tensor([[21], [21]])
    with pytest.raises(
        ValueError, match="num_heads: expected none, a trained fusion cuts no heads"
    ):
        multimodal_fusion(text, image, network, num_heads=2)
    with pytest.raises(ValueError, match="num_heads: expected none, a trained decoder cuts no hea"):
        joint_decoder(ids, text, image, network, num_heads=2)


def test_a_text_without_any_token_is_no_text_and_leaves_gradients_finite():
    network = small_network(fusion=FUSION)
    torch.manual_seed(1)
    text, image = torch.randn(WORDS, requires_grad=True), torch.randn(PATCHES, requires_grad=True)
    mask = MASK.clone()
    mask[1] = False
    joint = multimodal_fusion(text, image, network, text_mask=mask)
    other = multimodal_fusion(text + 1, image, network, text_mask=mask)
    assert torch.equal(joint[1], other[1]) and not torch.equal(joint[0], other[0])
    target = torch.tensor([[21, 4], [21, 3]])
    logits = joint_decoder(target, text, image, network, text_mask=mask)
    other = joint_decoder(target, text + 1, image, network, text_mask=mask)
    assert torch.equal(logits[1], other[1]) and not torch.equal(logits[0], other[0])
    (joint.sum() + logits.square().sum()).backward()
    for tensor in (text, image, *network.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()
    assert text.grad is not None and not text.grad[1].any() and text.grad[0].any()


@pytest.mark.parametrize("given", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_what_is_given_is_cast_to_the_dtype_of_the_weights(given, weights):
    network = small_network(fusion=FUSION).to(weights)
    frozen = FrozenJointNetwork(FrozenJointConfig("pocket", "f" * 32, 8, FUSION)).eval().to(weights)
    torch.manual_seed(1)
    text, image = torch.randn(WORDS).to(given), torch.randn(PATCHES).to(given)
    ids, vectors = torch.tensor([[21, 4], [21, 3]]), normalize(torch.randn(2, 3, 8), dim=-1)
    joint = multimodal_fusion(text, image, network)
    assert joint.dtype == torch.float32
    assert torch.equal(joint, multimodal_fusion(text.to(weights), image.to(weights), network))
    joint = multimodal_fusion(*vectors.to(given), frozen)
    assert joint.dtype == torch.float32
    assert torch.equal(joint, multimodal_fusion(*vectors.to(given).to(weights), frozen))
    for decoder in (network, network.decoder):
        logits = joint_decoder(ids, text, image, decoder)
        assert logits.dtype == weights
        assert torch.equal(logits, joint_decoder(ids, text.to(weights), image.to(weights), decoder))


def test_no_name_stands_for_random_weights(tmp_path):
    x, one = tokens(2, 3, 8), tokens(2, 8)
    for name in ("gated", "cross_attention", "mlp"):
        with pytest.raises(ValueError, match=f"fusion '{name}': expected concat, add, mean"):
            multimodal_fusion(x, x, name)
    for name in ("", "n" * 5000):
        with pytest.raises(ValueError, match=f"fusion '{name}': expected concat, add, mean"):
            multimodal_fusion(x, x, name)
        with pytest.raises(ValueError, match=f"decoder '{name}': expected attention"):
            joint_decoder(x, x, x, name)
    with pytest.raises(ValueError, match="decoder 'transformer': expected attention"):
        joint_decoder(x, x, x, "transformer")
    with pytest.raises(ValueError, match="model of type LayerNorm: expected a JointModel"):
        multimodal_fusion(x, x, torch.nn.LayerNorm(8))
    with pytest.raises(EncoderError, match=r"no model\.safetensors"):
        multimodal_fusion(x, x, tmp_path)
    with pytest.raises(ValueError, match="expected a model that has one, found a model without"):
        joint_decoder(x, x, x, small_network(decoder=None))
    for text, image, form in (
        (x, one, "concat"), (one, tokens(2, 6), "add"), (one, one, "attention"),
        (x, tokens(2, 3, 6), "concat"), (x, tokens(3, 3, 8), "concat"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            multimodal_fusion(text, image, form)


FUSION = FusionConfig(width=8, depth=1, heads=2, slots=2)
TARGETS = "expected ids (B, T), B of the text, here (2, 1 or more)"
WORDS, PATCHES = (2, 5, 16), (2, 9, 32)  # tokens of the small network
MASK = torch.ones(2, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("text", "image", "mask", "line"),
    [
        ((2, 5, 17), PATCHES, None, "text: expected tokens (B, T, D) of the model, here "
         "(1 or more, 1 or more, 16), found (2, 5, 17)"),
        ((2, 16), PATCHES, None, "text: expected tokens (B, T, D) of the model, here "
         "(1 or more, 1 or more, 16), found (2, 16)"),
        (WORDS, (2, 8, 32), None, "image: expected tokens (B, N, D) of the model, B of the text, "
         "here (2, 9, 32), found (2, 8, 32)"),
        (WORDS, (3, 9, 32), None, "image: expected tokens (B, N, D) of the model, B of the text, "
         "here (2, 9, 32), found (3, 9, 32)"),
        (WORDS, PATCHES, MASK[:, :4], "text_mask: expected (B, T) of the text, here (2, 5), found "
         "(2, 4)"),
        (WORDS, PATCHES, MASK.long(), "text_mask: expected bool, found torch.int64"),
    ],
)  # fmt: skip
def test_tokens_that_do_not_fit_a_model_are_one_line(text, image, mask, line):
    network = small_network(fusion=FUSION)
    given = torch.zeros(text), torch.zeros(image), network
    ids = torch.tensor([[21, 4], [21, 3]])
    for call in (multimodal_fusion, lambda *some, **more: joint_decoder(ids, *some, **more)):
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
            call(*given, text_mask=mask)


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (torch.zeros(2, 3), "expected int64 ids below 29, found torch.float32"),
        (torch.tensor([[21, 29], [21, 1]]), "expected int64 ids below 29, found 1 to 29"),
        (torch.tensor([[21, -1], [21, 1]]), "expected int64 ids below 29, found -1 to 21"),
        (
            torch.tensor([[21, 4]]),
            "expected ids (B, T), B of the text, here (2, 1 or more), found (1, 2)",
        ),
        (
            torch.tensor([21, 4]),
            "expected ids (B, T), B of the text, here (2, 1 or more), found (2,)",
        ),
    ],
)
def test_targets_that_do_not_fit_a_decoder_are_one_line(ids, found):
    with pytest.raises(ValueError, match=f"^{re.escape(f'input_sequence: {found}')}$"):
        joint_decoder(ids, torch.zeros(WORDS), torch.zeros(PATCHES), small_network())


def test_shapes_that_do_not_fit_a_form_are_one_line():
    x, text, seen = tokens(2, 4, 8), tokens(2, 3, 8), tokens(2, 5, 8)
    mask = torch.ones(2, 4, dtype=torch.bool)
    for call, line in (
        (lambda: joint_decoder(x[0], text, seen), "input_sequence: expected (B, T, D)"),
        (lambda: joint_decoder(x, text[:1], seen), "text_encoder_output: expected (B, S, D)"),
        (
            lambda: joint_decoder(x, text, seen[..., :4]),
            "image_encoder_output: expected (B, S, D)",
        ),
        (lambda: joint_decoder(x, text, seen[:, :0]), "image_encoder_output: expected (B, S, D)"),
        (lambda: joint_decoder(x, text, seen, text_mask=mask), "text_mask: expected (B, T) of"),
        (
            lambda: multimodal_fusion(text, seen, "attention", text_mask=mask),
            "text_mask: expected",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(line)}"):
            call()


@pytest.mark.parametrize("form", ["concat", "add", "mean", "attention"])
def test_only_vectors_and_tokens_are_fused(form):
    for shape in ((), (8,), (2, 3, 4, 8)):
        with pytest.raises(
            ValueError, match=r"expected vectors of both, \(B, D_0\) and|tokens \(B"
        ):
            multimodal_fusion(torch.ones(shape), torch.ones(shape), form)
    x = tokens(2, 3, 8)
    for other in (x.numpy(), x.tolist(), None):
        kind = type(other).__name__
        with pytest.raises(ValueError, match=f"^expected tensors, found Tensor, {kind}$"):
            multimodal_fusion(x, other, form)
        with pytest.raises(ValueError, match=f"^expected tensors, found Tensor, {kind}, Tensor$"):
            joint_decoder(x, other, x)
    with pytest.raises(ValueError, match="text_mask: expected a tensor, found list"):
        multimodal_fusion(x, x, "attention", text_mask=[[True] * 3] * 2)


def test_what_is_masked_may_be_anything():
    """Padding that is NaN or infinite, for the forms and for a trained model."""
    torch.manual_seed(4)
    x, text, image = tokens(2, 4, 8), tokens(2, 5, 8, seed=1), tokens(2, 3, 8, seed=2)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    spoilt = text.masked_fill(~mask[..., None], torch.nan)
    plain = text.masked_fill(~mask[..., None], 0.0)
    found = joint_decoder(x, spoilt, image, text_mask=mask)
    assert found.isfinite().all()
    torch.testing.assert_close(found, joint_decoder(x, plain, image, text_mask=mask))
    fused = multimodal_fusion(spoilt, image, "attention", text_mask=mask)[:, 5:]
    clean = multimodal_fusion(plain, image, "attention", text_mask=mask)[:, 5:]
    torch.testing.assert_close(fused, clean)
    network = small_network(fusion=FUSION)
    text, image, target = torch.randn(WORDS), torch.randn(PATCHES), torch.tensor([[21, 4], [21, 3]])
    for value in (torch.nan, torch.inf):
        for call in (
            lambda text: multimodal_fusion(text, image, network, text_mask=mask),
            lambda text: joint_decoder(target, text, image, network, text_mask=mask),
        ):
            found = call(text.masked_fill(~mask[..., None], value))
            assert found.isfinite().all()
            torch.testing.assert_close(found, call(text.masked_fill(~mask[..., None], 0.0)))
