"""The toolbox of all trainings, against AdamW, schedules and averages as the papers have them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.model.config import FusionConfig, ImageConfig, ModelConfig, TextConfig
from chiasm.pipeline.training.optim import (
    Ema,
    Optimiser,
    cosine,
    decay_groups,
    warmup_then_cosine,
    warmup_times_cosine,
)
from chiasm.pipeline.training.pocket.data import DataSettings, learn_tokenizer, train_batch
from chiasm.pipeline.training.pocket.settings import TrainSettings
from chiasm.pipeline.training.pocket.trainer import Training
from chiasm.pipeline.training.two_tower import trainer as two_tower
from chiasm.pipeline.training.two_tower.stream import Pair
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

CPU = torch.device("cpu")
POCKET = TrainSettings(
    steps=3, cycles=(1,), fusion_steps=3, fusion_cycles=(1,), fusion_batch=8, learning_rate=3e-3,
    warmup=0.5, corpus=60, clip=0.5, data=DataSettings(seed=3, batch=12, side=36, context=40),
    model=ModelConfig(
        ImageConfig(side=36, stem=(8, 16), width=32, depth=1, heads=2),
        TextConfig(vocabulary=400, context=40, width=32, depth=1, heads=2),
        dim=16,
        fusion=FusionConfig(width=32, depth=1, heads=2),
    ),
)  # fmt: skip
TWO_TOWER = two_tower.TrainSettings(steps=6, fusion_steps=3, batch=8, warmup=3, clip=0.3)
CONFIG = TwoTowerConfig(
    "an image model", "1", "a text model", "2", image_width=6, patch_width=5, text_width=7,
    word_width=4, landmarks=3, text_landmarks=2, query_bank=3, words=5, dim=9, image_hidden=6,
    text_hidden=6, word_hidden=6,
    fusion=FusionConfig(fusion="gated", width=8, depth=1, heads=2, slots=2),
)  # fmt: skip


class AdamW:
    """Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2, of one
    tensor in float64."""

    def __init__(self, weight, decay):
        self.weight, self.decay = weight.detach().double().clone(), decay
        self.m, self.v, self.steps = torch.zeros_like(self.weight), torch.zeros_like(self.weight), 0

    def step(self, gradient, rate):
        self.steps += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.98 * self.v + 0.02 * gradient**2
        mean, square = self.m / (1 - 0.9**self.steps), self.v / (1 - 0.98**self.steps)
        self.weight -= rate * self.decay * self.weight
        self.weight -= rate * mean / (square.sqrt() + 1e-8)


class Reference:
    """Groups, clipping, AdamW and EMA of named parameters, one tensor at a time. group: name of a
    parameter -> with which others it is clipped."""

    def __init__(self, named, average, decays, weight_decay, group=lambda name: ""):
        self.parameters, self.group = dict(named), group
        self.adamw = {
            name: AdamW(each, weight_decay if decays(name, each) else 0.0)
            for name, each in self.parameters.items()
        }
        self.average = {name: tensor.double().clone() for name, tensor in average.items()}

    def step(self, rates, clip, ema):
        """Take the gradients that the parameters have now; rates: by group."""
        gradients = {
            name: each.grad.double()
            for name, each in self.parameters.items()
            if each.grad is not None
        }
        for name, gradient in gradients.items():
            alike = [g for n, g in gradients.items() if self.group(n) == self.group(name)]
            norm = math.sqrt(sum(float(g.square().sum()) for g in alike))
            self.adamw[name].step(gradient * min(1.0, clip / norm), rates[self.group(name)])
        for name in self.average.keys() & self.adamw.keys():
            self.average[name] += (1 - ema) * (self.adamw[name].weight - self.average[name])

    def agrees(self, average):
        for name, parameter in self.parameters.items():
            found = parameter.detach().double()
            torch.testing.assert_close(found, self.adamw[name].weight, atol=2e-6, rtol=1e-4)
        for name, tensor in self.average.items():
            torch.testing.assert_close(average[name].double(), tensor, atol=2e-6, rtol=1e-4)


def test_pocket_is_trained_by_adamw_with_warmup_cosine_and_average():
    tokenizer = learn_tokenizer(400, 60)
    training = Training(POCKET, CPU, tokenizer)
    model, embeddings = "model.", ("text.embedding.weight", "fusion.type_embeddings")
    for stage in range(2):
        named = {
            name.removeprefix(model): each
            for name, each in training.objective.named_parameters()
            if each.requires_grad
        }
        reference = Reference(
            named, training.ema.tensors,
            lambda name, each: each.ndim in (2, 4) and name not in embeddings, 0.05,
        )  # fmt: skip
        for step in range(3):
            data = replace(POCKET.data, batch=8 if stage else 12)
            training.backward(train_batch(training.step, data, tokenizer))
            progress = step / 3
            rate = 3e-3 * (
                max(progress / 0.5, 1 / 2.5)
                if progress < 0.5
                else 0.01 + 0.99 * (1 + math.cos(math.pi * (progress - 0.5) / 0.5)) / 2
            )
            reference.step({"": rate}, clip=0.5, ema=min(0.998, (1 + step) / (10 + step)))
            training.apply()
            if (stage, step) == (0, 2):  # the second stage starts at the average of the first
                weights = training.objective.model.state_dict()
                assert all(torch.equal(weights[n], t) for n, t in training.ema.tensors.items())
                reference.parameters = {}
            reference.agrees(training.ema.tensors)
    assert training.step == 6


def pairs_of(count, captions):
    """Pictures with captions, drawn."""
    chance = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=chance)  # noqa: E731
    return [
        Pair(
            image=draw(6), patches=draw(3, 5), text=draw(captions, 7), words=draw(captions, 2, 4),
            lengths=torch.full((captions,), 2), ids=[[i % 5, (i + n) % 5] for n in range(captions)],
            picture=i, fold=0, augmented=None,
        )
        for i in range(count)
    ]  # fmt: skip


def test_two_towers_are_trained_by_adamw_with_warmup_cosine_and_average():
    torch.manual_seed(1)
    prepared = TwoTowerNetwork(CONFIG)
    prepared.word_ids.copy_(torch.arange(5))
    training = two_tower.Training(prepared, TWO_TOWER)
    named = {**training.trained, "heads.scales": training.scales}
    reference = Reference(
        named, training.ema.tensors, lambda _, each: each.ndim > 1, 0.3,
        lambda name: name.split(".")[0],
    )  # fmt: skip
    pairs = pairs_of(8, captions=2)
    for step in range(6):
        losses = training.backward(pairs, torch.Generator().manual_seed(step))
        assert ("joint" in losses) == (step >= 3)
        terms = sum(value for name, value in losses.items() if name != "loss")
        assert losses["loss"] == pytest.approx(terms, rel=1e-5)
        heads = 1e-3 * min(1, (step + 1) / 3) * (1 + math.cos(math.pi * step / 6)) / 2
        late = max(0, step - 3)
        fusion = 0.5e-3 * min(1, (late + 1) / 3) * (1 + math.cos(math.pi * late / 3)) / 2
        rates = {"heads": heads, "word_classifier": heads, "fusion": fusion}
        reference.step(rates, clip=0.3, ema=min(0.97, (1 + step) / (10 + step)))
        training.apply()
        reference.agrees(training.ema.tensors)


def test_groups_are_by_name_and_decay_in_the_order_of_the_parameters():
    named = [
        (name, torch.nn.Parameter(torch.zeros(shape)))
        for name, shape in (("a.bias", (2,)), ("a.weight", (2, 2)), ("b.weight", (2, 2)))
    ]
    groups = decay_groups(
        named, 0.1, lambda _, each: each.ndim > 1, group=lambda name: name.split(".")[0]
    )
    assert [(group.name, group.weight_decay) for group in groups] == [
        ("a", 0.0), ("a", 0.1), ("b", 0.1),
    ]  # fmt: skip
    assert [each for group in groups for each in group.parameters] == [each for _, each in named]


def test_a_gradient_that_is_not_finite_updates_nothing():
    weight = torch.nn.Parameter(torch.ones(3))
    bias = torch.nn.Parameter(torch.ones(1))
    named = [("heads.weight", weight), ("fusion.bias", bias)]
    groups = decay_groups(named, 0.1, lambda *_: True, group=lambda name: name.split(".")[0])
    optimiser = Optimiser(groups, 1e-2, clip=1.0)
    for factor, norm in ((float("nan"), "nan"), (float("inf"), "inf")):
        optimiser.backward(weight.sum() + factor * bias.sum())
        with pytest.raises(ChiasmError) as caught:
            optimiser.apply({"heads": 1.0, "fusion": 1.0}, "step 5", "stop")
        assert str(caught.value) == (
            f"step 5: expected finite losses and gradients, found norm fusion {norm}; stop"
        )
        assert torch.equal(weight, torch.ones(3)) and torch.equal(bias, torch.ones(1))
    assert optimiser.tensors() == {}


def test_schedules_warm_up_and_end_at_their_floor():
    assert cosine(0.0, 0.1) == 1 and cosine(1.0, 0.1) == pytest.approx(0.1)
    factors = [warmup_then_cosine(step, 100, 0.1, 0.01) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11) and factors[5] == 0.5 and factors[10] == 1
    assert factors[100] == pytest.approx(0.01) and factors[10:] == sorted(factors[10:])[::-1]
    factors = [warmup_times_cosine(step, 100, 10) for step in range(101)]
    assert factors[0] == 0.1 and factors[4] == pytest.approx(0.5 * cosine(0.04))
    assert factors[100] == pytest.approx(0, abs=1e-12)


def test_the_average_forgets_where_it_began():
    weights = {"w": torch.zeros(3), "frozen": torch.ones(2)}
    ema = Ema(weights, decay=0.9)
    for updates in range(200):
        ema.update([("w", torch.full((3,), 5.0))], updates)
    assert torch.allclose(ema.tensors["w"], torch.full((3,), 5.0))
    assert torch.equal(ema.tensors["frozen"], weights["frozen"])
    assert not weights["w"].any()  # it has tensors of its own
    with pytest.raises(KeyError, match="frozen"):
        ema.load({"w": torch.zeros(3)})


def test_the_state_of_an_optimiser_comes_back_to_the_bit():
    def made():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        groups = decay_groups(network.named_parameters(), 0.1, lambda _, each: each.ndim > 1)
        return network, Optimiser(groups, 1e-2, clip=1.0)

    def step(network, optimiser, seed):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        optimiser.backward(network(x).square().mean())
        return optimiser.apply({"": 1.0})[""]

    network, optimiser = made()
    assert optimiser.tensors() == {}
    norms = [step(network, optimiser, seed) for seed in range(6)]
    again, resumed = made()
    assert [step(again, resumed, seed) for seed in range(3)] == norms[:3]
    weights = {name: tensor.clone() for name, tensor in again.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in resumed.tensors().items()}
    fresh, optimiser = made()
    fresh.load_state_dict(weights)
    optimiser.load(state)
    assert [step(fresh, optimiser, seed) for seed in range(3, 6)] == norms[3:]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name
