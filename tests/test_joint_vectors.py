"""The joint vector: its formula in either form, the rule by which it ships, and its figures."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict, replace
from math import comb

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from chiasm.pipeline.encoders import BaseEncoder, Encoded
from chiasm.pipeline.model.config import (
    FusionConfig,
    ImageConfig,
    ModelConfig,
    TextConfig,
    of_fields,
)
from chiasm.pipeline.model.fusion import FUSIONS, Fusion, Modality
from chiasm.pipeline.model.losses import any_true_loss
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.scenes import draw
from chiasm.pipeline.scenes.claims import holds, holds_matrix
from chiasm.pipeline.scenes.parse import parse_caption
from chiasm.pipeline.scenes.words import LANGUAGES, caption, plan, render_caption
from chiasm.pipeline.scenes.world import WORLD_1, WORLD_2, gallery, stream
from chiasm.pipeline.training.paired import TEXT_WEIGHTS
from chiasm.pipeline.training.pocket import (
    calibrate,
    evaluate_fusion,
    evaluate_joint,
    loop,
    stages,
)
from chiasm.pipeline.training.pocket.calibrate import wins
from chiasm.pipeline.training.pocket.data import DataSettings, learn_tokenizer, train_batch
from chiasm.pipeline.training.pocket.joint_task import (
    JointTask,
    JointVectors,
    best_text_weight,
    joint_task,
)
from chiasm.pipeline.training.pocket.objective import Objective
from chiasm.pipeline.training.pocket.settings import TrainSettings
from chiasm.pipeline.training.pocket.stages import ends_of, stages_of
from chiasm.pipeline.training.pocket.trainer import Training

CONFIG = FusionConfig(width=16, depth=1, heads=2, slots=3)
TINY = ModelConfig(
    image=ImageConfig(side=36, stem=(8, 8), width=16, depth=1, heads=1),
    text=TextConfig(width=16, depth=1, heads=1),
    dim=16,
    fusion=CONFIG,
)
SETTINGS = TrainSettings(
    steps=1, fusion_steps=2, fusion_batch=4, corpus=20, calibrated=12, model=TINY,
    checkpoint_every=1000, data=DataSettings(batch=4, side=36, context=40),
)  # fmt: skip


def modality(width, lengths, seed):
    chance = torch.Generator().manual_seed(seed)
    tokens = torch.randn(len(lengths), max(lengths), width, generator=chance)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    vector = normalize(torch.randn(len(lengths), 8, generator=chance), dim=-1)
    return Modality(tokens, mask, vector)


def by_hand(fusion, given, bounded, of_vectors=False):
    """The formulas of fusion.py, a row at a time, from the tokens that the mixer gives."""
    parts = [fusion.project(i, item.tokens) for i, item in enumerate(given)]
    parts, masks = fusion.mixer(parts, [item.mask for item in given])
    rows = []
    for row in range(len(given[0].vector)):
        has = [i for i, item in enumerate(given) if item.mask[row].any()]
        pooled = [
            fusion.pool(part[row : row + 1, mask[row]])[0].numpy()
            for part, mask in zip(parts, masks, strict=True)
            if mask[row].any()
        ]
        if bounded:
            weights = np.array([fusion.mean_weights[i] for i in has])
        elif fusion.modality_score is not None:
            weights = np.exp([s @ fusion.modality_score.weight[0].numpy() for s in pooled])
        else:
            weights = np.ones(len(has))
        vectors = np.stack([given[i].vector[row].numpy() for i in has])
        if not of_vectors:
            r = fusion.residual.weight.numpy() @ np.mean(pooled, axis=0)
        elif len(has) < len(given):
            r = np.zeros(8)
        else:
            r = fusion.residual.weight.numpy() @ np.concatenate([*pooled, *np.sqrt(8) * vectors])
        if bounded:
            r = r / np.sqrt(1 + r @ r)
        j = weights / weights.sum() @ vectors + r
        rows.append(j / np.linalg.norm(j))
    return np.stack(rows)


@pytest.mark.parametrize(("bounded", "of_vectors"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("name", sorted(FUSIONS))
@torch.no_grad()
def test_the_joint_vector_is_its_formula(name, bounded, of_vectors):
    torch.manual_seed(0)
    form = {"bounded_residual": bounded, "residual_of_vectors": of_vectors}
    fusion = Fusion(replace(CONFIG, fusion=name, **form), (12, 20), 8).eval()
    if bounded:
        fusion.mean_weights.copy_(torch.tensor([0.2, 0.8]))
    given = [modality(12, [5, 2, 4], seed=1), modality(20, [6, 6, 6], seed=2)]
    given = [
        given[0].where(torch.tensor([True, True, False])),
        given[1].where(torch.tensor([True, False, True])),
    ]
    expected = by_hand(fusion, given, bounded, of_vectors)
    np.testing.assert_allclose(fusion(given).joint.numpy(), expected, atol=1e-5)
    if of_vectors:
        torch.testing.assert_close(fusion([given[0], None]).joint[:2], given[0].vector[:2])


def test_a_learned_part_that_reads_vectors_is_bounded():
    with pytest.raises(ValueError, match="residual_of_vectors: expected with bounded_residual"):
        FusionConfig(bounded_residual=False, residual_of_vectors=True)


@pytest.mark.parametrize("name", sorted(FUSIONS))
@torch.no_grad()
def test_however_large_the_learned_part_grows_the_mean_counts(name):
    torch.manual_seed(0)
    fusion = Fusion(replace(CONFIG, fusion=name), (12, 20), 8).eval()
    text, image = modality(12, [5, 2, 4], seed=1), modality(20, [6, 6, 6], seed=2)
    fusion.residual.weight.mul_(1e6)
    grown = fusion([text, image]).joint
    other = Modality(image.tokens, image.mask, -image.vector)
    assert (grown - fusion([text, other]).joint).norm(dim=1).min() > 0.3
    fusion.reset_to_mean((0.25, 0.75))
    assert fusion.is_mean
    mean = normalize(text.vector + 3 * image.vector, dim=-1)
    torch.testing.assert_close(fusion([text, image]).joint, mean)
    fusion.reset_to_mean((0.0, 1.0))  # a row that has what weighs nothing alone is its vector
    torch.testing.assert_close(fusion([text, None]).joint, text.vector)


def test_weights_of_a_form_without_any_are_refused():
    fusion = Fusion(replace(CONFIG, bounded_residual=False), (12, 20), 8)
    with pytest.raises(ValueError, match="without bounded_residual"):
        fusion.reset_to_mean((0.5, 0.5))


def test_folders_that_do_not_say_have_the_form_of_before():
    fields = {"fusion": "gated", "width": 16, "depth": 1, "heads": 2, "slots": 3}
    before = of_fields(FusionConfig, fields)
    assert not before.bounded_residual
    assert of_fields(FusionConfig, asdict(before)) == before
    assert of_fields(FusionConfig, asdict(CONFIG)) == CONFIG and CONFIG.bounded_residual


def test_the_loss_of_any_right_answer_is_its_formula():
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.5, 0.0, 3.0]])
    true = torch.tensor([[True, False, True], [True, False, False]])
    e = logits.exp().tolist()
    expected = -np.mean([
        np.log((e[0][0] + e[0][2]) / sum(e[0])), np.log(e[1][0] / sum(e[1]))
    ])  # fmt: skip
    assert any_true_loss(logits, true).item() == pytest.approx(expected, rel=1e-6)


def crafted(image, text, joint, queries):
    size = len(queries)
    rows = [np.asarray(x, dtype=np.float32) for x in (image, text, joint, queries)]
    scenes = gallery(size, seed=0)
    return JointTask(scenes, [""] * size, [""] * size, np.eye(size, dtype=bool)), JointVectors(
        *rows
    )


def test_the_best_weight_is_that_of_most_right_first_hits():
    chance = np.random.default_rng(0)
    queries = chance.normal(size=(60, 8))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    queries = unit(queries)
    image = unit(queries + 0.35 * chance.normal(size=queries.shape))
    text = unit(queries + 0.6 * chance.normal(size=queries.shape))
    task, vectors = crafted(image, text, image, queries)
    right = []
    for weight in TEXT_WEIGHTS:
        mixed = unit((1 - weight) * vectors.image + weight * vectors.text)
        right.append(sum((mixed @ q).argmax() == n for n, q in enumerate(vectors.queries)))
    assert len(set(right)) > 3 and right[0] < max(right)
    assert best_text_weight([(task, vectors)]) == TEXT_WEIGHTS[right.index(max(right))]
    assert not wins([(task, vectors)], best_text_weight([(task, vectors)]))  # image alone
    assert wins([(task, replace(vectors, joint=queries))], 0.0)


@torch.no_grad()
def test_training_begins_at_the_best_mean_and_what_does_not_win_becomes_it():
    training = Training(SETTINGS, torch.device("cpu"), learn_tokenizer(300, 20))
    training.step = SETTINGS.steps
    training.begin_joint(12)
    model = training.objective.model
    galleries = training._galleries(model.eval(), 12)
    weight = max(best_text_weight(galleries), 1e-3)
    torch.testing.assert_close(
        model.fusion.mean_weights, torch.tensor([weight, 1 - weight]), atol=2e-3, rtol=0
    )
    assert model.fusion.is_mean
    training.ema.tensors["fusion.residual.weight"].normal_(std=100.0)  # noise
    assert not wins(*(lambda g: (g, best_text_weight(g)))(
        training._galleries(training._average(), 12)
    ))  # fmt: skip
    training.calibrate(12)
    assert training._average().fusion.is_mean


def test_the_last_stage_trains_what_the_joint_vector_adds_and_nothing_else():
    run = replace(SETTINGS, fusion_steps=70, joint_rounds=3, joint_batch=12)
    assert [stage.name for stage in stages_of(run)] == ["towers", "fusion", "joint"]
    assert run.all_steps == 1 + 70 + 2 * 3 == ends_of(stages_of(run))[-1]
    training = Training(run, torch.device("cpu"), learn_tokenizer(300, 20))
    training.step = 71
    training.begin_joint(12)
    assert training.stage.name == "joint" and training.stage.calibrated == 12
    before = {name: each.clone() for name, each in training.objective.state_dict().items()}
    batch = train_batch(71, training.stage.data, training.tokenizer)
    assert set(training.train_step(training.keep(batch))) == {"loss", "joint", "norm"}
    changed = [
        name
        for name, each in training.objective.state_dict().items()
        if not torch.equal(each, before[name])
    ]
    assert changed == ["model.fusion.residual.weight"]


def test_the_last_stage_goes_through_what_it_keeps_in_rounds(tmp_path, monkeypatch):
    """Each batch is drawn and kept once; the steps of a round are on the same ones in turn."""
    run = replace(SETTINGS, fusion_steps=70, joint_rounds=3, joint_batch=12, checkpoint_every=1)
    drawn, kept, learned, saved = [], [], [], []

    def drawing(step, *given, **named):
        drawn.append(step)
        return train_batch(step, *given, **named)

    class Watched(Training):
        def keep(self, batch):
            kept.append(super().keep(batch))
            return kept[-1]

        def train_step(self, batch):
            if self.stage.name == "joint":
                learned.append(batch)
            return super().train_step(batch)

        def save(self, folder):
            saved.append(self.step)

    monkeypatch.setattr(stages, "train_batch", drawing)
    monkeypatch.setattr(loop, "Training", Watched)
    loop.train(run, tmp_path, device="cpu", precision="float32", workers=0)
    assert drawn == [*range(1 + 70), 71, 72]
    assert [id(item) for item in learned] == [id(item) for item in kept] * 3
    assert saved == [*range(1, 72), 77]  # what is kept is in no state


@torch.no_grad()
def test_the_loss_of_the_last_stage_by_brute_force():
    objective, tokenizer = Objective(TINY).eval(), learn_tokenizer(300, 20)
    model, batch = objective.model, train_batch(3, replace(SETTINGS.data, batch=24), tokenizer)
    chance = torch.Generator()
    found = objective.joint_losses(objective.joint_features(batch, chance), chance)["joint"].item()
    joint = []
    for row in range(24):
        image = model.image_modality(torch.from_numpy(batch.pixels[row : row + 1]))
        text = model.text_modality(torch.from_numpy(batch.captions[0].ids[row : row + 1]))
        joint.append(model.fuse(text, image).joint)
    query = model.encode_text(torch.from_numpy(batch.captions[1].ids))[1]
    e = (model.scale * query @ torch.cat(joint).T).exp().double().numpy()
    right = (e * batch.captions[1].also_true).sum(1)
    assert found == pytest.approx(-np.log(right / e.sum(1)).mean(), rel=2e-3)  # kept as float16


class FactsEncoder(BaseEncoder):
    """A text or a picture -> a pseudo-random vector of its bytes."""

    name, fingerprint, precision, device = "facts", "1", "float32", "cpu"
    dims = dict.fromkeys((IMAGE, TEXT, "joint"), 6)

    def preprocess(self, modality, raw):
        return raw

    def encode(self, modality, items):
        rows = []
        for item in items:
            made = item if isinstance(item, str) else item.tobytes().hex()
            chance = np.random.default_rng(sum(made.encode()))
            rows.append(chance.normal(size=6))
        rows = np.array(rows, dtype=np.float32)
        return Encoded(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def encode_joint(self, parts):
        rows = parts[IMAGE].vectors - parts[TEXT].vectors
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_figures_of_an_encoder_by_brute_force():
    found = evaluate_joint.joint(FactsEncoder(), [5, 6], 40)
    first = {"image": [], "fusion": [], "mean": []}
    for seed in (5, 6):
        scenes, rng = gallery(40, seed), random.Random(f"joint {seed}")
        captions = [
            render_caption(plan(s, rng, complete=False), rng, rng.choice(LANGUAGES)) for s in scenes
        ]
        claims = [plan(s, rng, complete=False) for s in scenes]
        queries = [render_caption(c, rng, rng.choice(LANGUAGES)) for c in claims]
        encoder, true = FactsEncoder(), holds_matrix(claims, scenes)
        pixels = [np.asarray(evaluate_joint.picture(scene)) for scene in scenes]
        image, text = encoder.encode(IMAGE, pixels), encoder.encode(TEXT, captions)
        weight = found["text_weight"]
        vectors = {
            "image": image.vectors,
            "fusion": encoder.encode_joint({IMAGE: image, TEXT: text}),
            "mean": (1 - weight) * image.vectors + weight * text.vectors,
        }
        for name, rows in vectors.items():
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            for n, query in enumerate(encoder.encode(TEXT, queries).vectors):
                first[name].append(true[n, (rows @ query).argmax()])
    for name, right in first.items():
        share = np.mean(right)
        assert found[name]["r1"] == pytest.approx(share)
        assert found[name]["r1_error"] == pytest.approx(np.sqrt(share * (1 - share) / 80))
    pairs = list(zip(first["fusion"], first["mean"], strict=True))
    won, losses = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    assert (found["only_fusion"], found["only_mean"]) == (won, losses) and won + losses > 3
    tail = sum(comb(won + losses, k) for k in range(won, won + losses + 1)) / 2 ** (won + losses)
    assert found["p"] == pytest.approx(tail)
    lines = evaluate_joint.format_joint(found)
    assert len(lines) == 6 and f"{weight:g} of the caption" in lines[3]


class ConstantLogits(FactsEncoder):
    """Every pair has the same logit."""

    def __init__(self, logit):
        self.logit = logit

    def match(self, a, b, pairs):
        return np.full(len(pairs), self.logit, dtype=np.float32)


def test_logits_that_are_nan_do_not_pass_with_the_order_of_the_vectors():
    sound, broken = (
        evaluate_fusion.hard_twins(ConstantLogits(logit), 5, 40, "en") for logit in (0, np.nan)
    )
    assert sound["matching_r1"] == sound["vectors_r1"] == broken["vectors_r1"] > 0
    assert broken["matching_r1"] == 0
    assert evaluate_fusion.accuracy(ConstantLogits(1), 5, 8)["all"] == 0.5
    assert evaluate_fusion.accuracy(ConstantLogits(np.nan), 5, 8)["all"] == 0


def test_galleries_that_choose_are_not_measured_on():
    for seed in evaluate_joint.TUNING_SEEDS:
        with pytest.raises(ValueError, match="which choose"):
            evaluate_joint.joint(FactsEncoder(), [9001, seed], 40)


def separated(training):
    """Let the vectors of towers that have learned nothing differ: without their common part."""
    model = training._average()
    scenes = list(itertools.islice(stream(7, world=WORLD_2), 64))
    pixels = [to_pixels(draw.picture(scene), 36) for scene in scenes]
    texts = [caption(scene, 1, world=WORLD_2).text for scene in scenes]
    pooled = {
        "image": model.image(torch.from_numpy(np.stack(pixels)))[1],
        "text": model.text(torch.from_numpy(training.tokenizer.batch(texts, 40)))[1],
    }
    for name, rows in pooled.items():
        common = torch.nn.functional.normalize(rows.mean(0), dim=0)
        weight = training.ema.tensors[f"{name}_projection.weight"]
        weight -= weight @ common[:, None] * common


@torch.no_grad()
def test_a_joint_vector_that_beats_every_mean_is_kept_and_another_becomes_the_mean():
    """A joint vector that finds each query beats the means of towers that have learned nothing."""
    run = replace(SETTINGS, data=replace(SETTINGS.data, world="world 2"))
    training = Training(run, torch.device("cpu"), learn_tokenizer(300, 20, WORLD_2))
    separated(training)
    average = training.ema.tensors
    average["fusion.residual.weight"].normal_(std=1e-4)
    before, galleries = {name: each.clone() for name, each in average.items()}, training._galleries
    training._galleries = lambda *given: [
        (task, replace(vectors, joint=vectors.queries)) for task, vectors in galleries(*given)
    ]
    training.calibrate(60)
    training._galleries = galleries
    changed = [name for name, each in average.items() if not torch.equal(each, before[name])]
    assert changed == ["matching.bias"]
    average["fusion.mean_weights"].copy_(torch.tensor([0.001, 0.999]))  # nearly the picture's
    training.calibrate(60)
    fusion = training._average().fusion
    weight = best_text_weight(training._galleries(training._average(), 60))
    assert fusion.is_mean and weight > 0
    # No weight is less than a thousandth.
    expected = torch.tensor([weight, 1 - weight]).clamp(0.001, 0.999)
    torch.testing.assert_close(fusion.mean_weights, expected, atol=2e-6, rtol=0)


def test_galleries_that_decide_are_of_the_world_that_is_trained_and_of_no_other_seed(monkeypatch):
    run = replace(SETTINGS, data=replace(SETTINGS.data, world="world 2"))
    training = Training(run, torch.device("cpu"), learn_tokenizer(300, 20, WORLD_2))
    seeds = []
    drawn = calibrate.stream

    def noting(seed, *args, **more):
        seeds.append(seed)
        assert more["world"] is WORLD_2
        return drawn(seed, *args, **more)

    monkeypatch.setattr(calibrate, "stream", noting)
    galleries = training._galleries(training._average(), 60)
    with torch.no_grad():
        training.calibrate(4)
    assert len(set(seeds)) == 3
    seed = run.data.seed
    assert all(seed * 10**9 + run.all_steps < each < (seed + 1) * 10**9 for each in seeds)
    kinds = {thing.kind for task, _ in galleries for s in task.scenes for thing in s.things}
    assert kinds - set(WORLD_1.kinds)
    ambiguous = 0
    for task, _ in galleries:
        for query, row in zip(task.queries, task.true, strict=True):
            language = "en" if query.isascii() else "zh"
            readings = parse_caption(query, language, WORLD_2)
            assert readings, query
            expected = [any(holds(c, s) for c in readings) for s in task.scenes]
            assert row.tolist() == expected, query
            ambiguous += len(readings) > 1
    assert ambiguous > 3


def test_the_task_of_world_1_is_as_it_was():
    scenes, rng = gallery(40, 3), random.Random("joint 3")
    task = joint_task(scenes, rng)
    rng = random.Random("joint 3")
    for scene in scenes:
        render_caption(plan(scene, rng, complete=False), rng, rng.choice(LANGUAGES))
    claims = [plan(scene, rng, complete=False) for scene in scenes]
    assert task.queries == [render_caption(c, rng, rng.choice(LANGUAGES)) for c in claims]
    assert (task.true == holds_matrix(claims, scenes)).all()
