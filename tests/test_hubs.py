"""Hubness reduction: joint vectors near very many queries are scaled down."""

from __future__ import annotations

import pytest
import torch

from chiasm.pipeline.two_tower.hubness import NEAR, NEAREST, HubnessReduction


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=-1)


def hubs_of(bank):
    hubs = HubnessReduction(*bank.shape)
    hubs.query_bank.data.copy_(bank)
    return hubs


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_likeness_to_a_query_is_divided_by_nearness_to_what_is_asked(power):
    torch.manual_seed(0)
    common = torch.randn(16)
    bank, joint, queries = (unit(common + torch.randn(n, 16)) for n in (50, 30, 20))
    found = hubs_of(bank)(joint, power)
    assert torch.allclose(found.norm(dim=1), torch.ones(30), atol=1e-6)
    scores = torch.nn.functional.pad(queries, (0, 1)) @ found.T
    near = torch.stack(
        [(bank @ each).sort(descending=True)[0][1 : NEAREST + 1].mean() for each in joint]
    )
    divided = queries @ joint.T * (NEAR / near.clamp(min=NEAR)) ** power
    assert torch.allclose(scores, divided, atol=1e-6)
    assert found[:, -1].eq(0).all() == (power == 0)


def test_what_lies_near_nothing_keeps_its_length_and_few_captions_will_do():
    bank = torch.eye(8)[:3]
    found = hubs_of(bank)(torch.eye(8)[5:], 0.5)
    assert torch.equal(found[:, :-1], torch.eye(8)[5:]) and not found[:, -1].any()


def test_a_hub_stands_no_more_before_what_is_meant():
    """Forty things in one half of space, joint vectors that tell of them badly, and one in the
    midst of all: whatever is asked, it is nearer than the badly told. Of what else may be asked it
    is near too, so it makes room."""
    torch.manual_seed(0)
    midst = unit(torch.randn(1, 64))
    things = unit(unit(torch.randn(40, 64)) + 1.2 * midst)
    near = lambda cosine: unit(  # noqa: E731
        cosine * things + (1 - cosine**2) ** 0.5 * unit(torch.randn(40, 64))
    )
    joint, queries, hubs = torch.cat([near(0.7), midst]), near(0.9), hubs_of(near(0.9))
    plain = (queries @ joint.T).argmax(1)
    shortened = (torch.nn.functional.pad(queries, (0, 1)) @ hubs(joint, 1.0).T).argmax(1)
    assert (plain == 40).float().mean() > 0.5
    assert (shortened == torch.arange(40)).float().mean() > 0.8
