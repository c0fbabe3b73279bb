"""Fusion in its four ways, and matching: what each promises whatever its weights are."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy, normalize

from chiasm.pipeline.model.config import FusionConfig
from chiasm.pipeline.model.fusion import FUSIONS, Fusion, Modality
from chiasm.pipeline.model.losses import matching_loss
from chiasm.pipeline.model.matching import Matching, hard_negatives
from chiasm.pipeline.training.pocket.objective import wrong_pairs

WIDTHS, DIM = (12, 20), 8
NAMES = sorted(FUSIONS)
CONFIG = FusionConfig(width=16, depth=2, heads=2, slots=5)


def fusion(name, widths=WIDTHS, trained=True):
    """One with random weights all over, or one that has just begun."""
    torch.manual_seed(1)
    made = Fusion(replace(CONFIG, fusion=name), widths, DIM).eval()
    if not trained:
        made.reset_to_mean()
    return made


def modality(tokens, width, lengths, seed=0):
    chance = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]
    made = torch.randn(len(lengths), tokens, width, generator=chance)
    vector = normalize(torch.randn(len(lengths), DIM, generator=chance), dim=-1)
    return Modality(made, mask, vector)


def pairs():
    return modality(7, 12, [7, 3, 1, 5], seed=1), modality(6, 20, [6, 6, 6, 6], seed=2)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_unit_joint_vectors(name):
    fused = fusion(name)(list(pairs()))
    tokens = CONFIG.slots if name in ("add", "gated") else 13
    assert fused.tokens.shape == (4, tokens, 16) and fused.mask.shape == (4, tokens)
    assert fused.joint.dtype == torch.float32
    torch.testing.assert_close(fused.joint.norm(dim=-1), torch.ones(4))


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_as_the_mean(name):
    text, image = pairs()
    begun = fusion(name, trained=False)([text, image])
    mean = normalize(text.vector + image.vector, dim=-1)
    torch.testing.assert_close(begun.joint, mean)
    learned = fusion(name)([text, image])
    assert (learned.joint - mean).abs().max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_lacks_a_modality_is_what_it_has(name):
    text, image = pairs()
    there = torch.tensor([True, False, True, False])
    mixed = fusion(name)([text.where(there), image])
    both = fusion(name)([text, image])
    alone = fusion(name)([None, image])
    torch.testing.assert_close(mixed.joint[there], both.joint[there])
    torch.testing.assert_close(mixed.joint[~there], alone.joint[~there])
    begun = fusion(name, trained=False)([text.where(there), image])
    torch.testing.assert_close(begun.joint[~there], image.vector[~there])


@pytest.mark.parametrize("name", NAMES)
def test_what_a_lacking_modality_holds_says_nothing(name):
    text, image = pairs()
    none = torch.zeros(4, dtype=torch.bool)
    other = Modality(text.tokens + 3, text.mask, -text.vector)
    learned = fusion(name)
    one = learned([text.where(none), image])
    two = learned([other.where(none), image])
    torch.testing.assert_close(one.joint, two.joint)
    match = Matching(16).eval()
    torch.testing.assert_close(match(one).logit, match(two).logit)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_company_say_nothing(name):
    text, image = pairs()
    learned, match = fusion(name), Matching(16).eval()
    whole = learned([text, image])
    for row, length in enumerate(text.mask.sum(1).tolist()):
        alone = Modality(
            text.tokens[row : row + 1, :length],
            text.mask[row : row + 1, :length],
            text.vector[row : row + 1],
        )
        one = learned([alone, image.take(torch.tensor([row]))])
        torch.testing.assert_close(one.joint[0], whole.joint[row])
        torch.testing.assert_close(match(one).logit[0], match(whole).logit[row])


@pytest.mark.parametrize("name", NAMES)
def test_a_third_modality_is_one_more_of_the_list(name):
    text, image = pairs()
    sound = modality(4, 6, [4, 2, 4, 0], seed=3)
    three = fusion(name, (*WIDTHS, 6))
    fused = three([text, image, sound])
    assert fused.joint.shape == (4, DIM)
    without = three([text, image, None])
    torch.testing.assert_close(fused.joint[3], without.joint[3])  # the row that has no sound
    assert (fused.joint[:3] - without.joint[:3]).abs().amax(1).min() > 1e-4
    begun = fusion(name, (*WIDTHS, 6), trained=False)([text, image, sound])
    mean = normalize(text.vector + image.vector + sound.vector, dim=-1)
    torch.testing.assert_close(begun.joint[:3], mean[:3])


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_learns_from_a_joint_vector_and_a_match(name):
    text, image = pairs()
    learned, match = fusion(name).train(), Matching(16)
    fused = learned([text, image])
    (fused.joint[:, 0].sum() + match(fused).logit.sum()).backward()
    still = [
        name
        for name, weight in [*learned.named_parameters(), *match.named_parameters()]
        if weight.grad is None or not weight.grad.any()
    ]
    assert still == []


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_is_nan_where_modalities_lack(name):
    text, image = pairs()
    there = torch.tensor([True, False, True, False])
    learned = fusion(name).train()
    fused = learned([text.where(there), image.where(~there)])
    fused.joint.sum().backward()
    grads = [weight.grad for weight in learned.parameters() if weight.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


def test_one_conflict_sinks_a_match_and_is_told():
    match = Matching(16).eval()
    fused = fusion("concat")(list(pairs()))
    found = match(fused)
    assert (found.conflict.isinf() == ~fused.mask).all()
    expected = match.bias - torch.stack(
        [row[row.isfinite()].exp().sum().log() for row in found.conflict]
    )
    torch.testing.assert_close(found.logit, expected)
    assert (found.label == (found.logit > 0)).all()
    sunk = replace(fused, tokens=fused.tokens.clone())
    sunk.tokens[0, 2] = 50 * match.conflict.weight[0] * match.norm.weight
    worse = match(sunk)
    assert worse.conflict[0].argmax() == 2 and worse.logit[0] < found.logit[0]


def test_a_pair_without_a_token_matches_at_even_odds_and_leaves_gradients_finite():
    match = Matching(16)
    fused = fusion("concat")(list(pairs()))
    mask = fused.mask.clone()
    mask[1] = False
    found, whole = match(replace(fused, mask=mask)), match(fused)
    assert found.logit[1] == 0 and not found.label[1] and found.conflict[1].isneginf().all()
    torch.testing.assert_close(found.logit[[0, 2, 3]], whole.logit[[0, 2, 3]])
    found.logit.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in match.parameters())


def test_fusion_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no modality"):
        fusion("concat")([None, None])


@given(seed=st.integers(0, 2**31), size=st.integers(1, 8), share=st.floats(0, 1))
def test_hard_negatives_are_wrong_and_the_harder_the_likelier(seed, size, share):
    chance = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, size, generator=chance) * 5
    true = torch.rand(size, size, generator=chance) < share
    columns, found = hard_negatives(scores, true, chance)
    assert (found == ~true.all(dim=1)).all()
    assert not true[torch.arange(size), columns][found].any()


def test_hard_negatives_follow_the_softmax_of_the_wrong():
    scores = torch.tensor([[9.0, 1.0, 2.0, 0.0]]).repeat(20000, 1)
    true = torch.tensor([[True, False, False, False]]).repeat(20000, 1)
    columns, _ = hard_negatives(scores, true, torch.Generator().manual_seed(0))
    shares = torch.bincount(columns, minlength=4) / len(columns)
    expected = torch.tensor([1.0, 2.0, 0.0]).softmax(0)
    assert shares[0] == 0
    torch.testing.assert_close(shares[1:], expected, atol=0.02, rtol=0)


@given(seed=st.integers(0, 2**31), size=st.integers(2, 8))
def test_wrong_pairs_keep_one_side_and_are_wrong(seed, size):
    chance = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, size, generator=chance)
    true = torch.rand(size, size, generator=chance) < 0.3
    wrong = wrong_pairs(scores, true, chance)
    rows = torch.arange(size)
    assert ((wrong.text == rows) | (wrong.image == rows))[wrong.found].all()
    assert (wrong.text != wrong.image)[wrong.found].all()
    assert not true[wrong.text, wrong.image][wrong.found].any()


def test_matching_loss_is_its_formula_both_sides_alike():
    logits = torch.tensor([2.0, -1.0, 0.5, 3.0, -4.0])
    true = torch.tensor([True, True, False, False, False])
    counted = torch.tensor([True, True, True, False, True])
    p = logits.sigmoid()
    right = binary_cross_entropy(p[:2], torch.ones(2))
    wrong = binary_cross_entropy(p[[2, 4]], torch.zeros(2))
    torch.testing.assert_close(matching_loss(logits, true, counted), (right + wrong) / 2)
    nothing = torch.zeros(5, dtype=torch.bool)
    assert matching_loss(logits, true, nothing) == 0
