"""What the decoder is trained on, what it learns from it, and how its writing is judged."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from chiasm.pipeline.model.config import DecoderConfig, ImageConfig, ModelConfig, TextConfig
from chiasm.pipeline.model.tasks import PREFIXES, TASKS
from chiasm.pipeline.model.tokenizer import END, PAD, normalise
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.words import plan
from chiasm.pipeline.scenes.world import WORLD_1, WORLD_2, edited, random_scene
from chiasm.pipeline.training.pocket.data import DataSettings, scenes_of
from chiasm.pipeline.training.pocket.evaluate_tasks import (
    groups_of,
    is_right,
    task_accuracy,
    write_texts,
)
from chiasm.pipeline.training.pocket.loop import average_network, tokenizer_of
from chiasm.pipeline.training.pocket.settings import TrainSettings, task_settings
from chiasm.pipeline.training.pocket.targets import (
    UNKNOWN,
    caption_kinds,
    caption_relations,
    caption_words,
    scene_kinds,
    words_of,
)
from chiasm.pipeline.training.pocket.task_data import (
    DRAWN,
    DRAWN_WITH_SCENE,
    examples_of,
    own_scenes,
    task_batch,
)
from chiasm.pipeline.training.pocket.trainer import Training

RUN = TrainSettings(
    steps=0, decoder_steps=60, decoder_batch=4, examples={"ask": 2, "caption": 1, "translate": 1},
    pictures={"sentiment": 2}, corpus=60, warmup=0.1, learning_rate=3e-3, gallery=12,
    data=DataSettings(seed=3, side=36, context=48, world="world 2"),
    model=ModelConfig(
        ImageConfig(side=36, stem=(8, 8), width=32, depth=1, heads=2),
        TextConfig(vocabulary=900, context=48, width=32, depth=1, heads=2),
        dim=16,
        fusion=None,
        decoder=DecoderConfig(width=48, depth=1, heads=3, context=64),
    ),
)  # fmt: skip
TOKENIZER = tokenizer_of(RUN)
TASK = task_settings(RUN)


def test_a_batch_of_tasks_is_a_function_of_seed_step_and_rank():
    one, again, other = (task_batch(step, TASK, TOKENIZER) for step in (7, 7, 8))
    assert list(one.tasks) == list(other.tasks) == ["sentiment", "ask", "caption", "translate"]
    assert one.pixels.shape == (6, 3, 36, 36) and (one.pixels == again.pixels).all()
    assert (one.pixels != other.pixels).any()
    for task, rows in one.tasks.items():
        assert (rows.inputs == again.tasks[task].inputs).all()
        assert (rows.sources is not None) == TASKS[task].source
    assert one.tasks["sentiment"].pictures.tolist() == [4, 5]
    assert one.tasks["caption"].pictures.tolist() == list(range(6))


def test_processes_share_the_examples_of_one_batch():
    double = replace(TASK, scenes=replace(TASK.scenes, batch=8), pictures={"sentiment": 4})
    whole = task_batch(5, double, TOKENIZER)
    parts = [task_batch(5, TASK, TOKENIZER, rank, 2) for rank in range(2)]
    for task, rows in whole.tasks.items():
        examples = [each for part in parts for each in part.tasks[task].examples]
        assert sorted(map(repr, examples)) == sorted(map(repr, rows.examples)), task


def test_inputs_are_a_prefix_and_the_target_so_far():
    for task, rows in task_batch(2, TASK, TOKENIZER).tasks.items():
        for example, inputs, targets in zip(rows.examples, rows.inputs, rows.targets, strict=True):
            length = int((targets != UNKNOWN).sum())
            assert TOKENIZER.decode(targets[: length - 1]) == normalise(example.target)
            assert targets[length - 1] == END and (targets[length:] == UNKNOWN).all()
            prefix = PREFIXES[inputs[0] - len(TOKENIZER)]
            assert prefix == f"{task}:{example.language}"
            assert (inputs[1:length] == targets[: length - 1]).all()
            assert (inputs[length:] == PAD).all()


def test_no_example_shows_a_withheld_combination():
    for step in range(12):
        scenes = [*scenes_of(step, TASK.scenes)]
        scenes += own_scenes("sentiment", [f"{step} {n}" for n in range(8)], WORLD_2)[0]
        assert not any(withheld_in(scene) for scene in scenes)


@pytest.mark.parametrize("task", [*DRAWN, *DRAWN_WITH_SCENE])
def test_what_is_wanted_is_right_and_what_is_wanted_of_another_seldom(task):
    """Through the tokenizer, which gives Chinese another comma."""
    rng, seeds = random.Random(4), [str(n) for n in range(40)]
    if task in DRAWN:
        scenes = [random_scene(rng, WORLD_2) for _ in seeds]
        examples = examples_of(scenes, task, 1, seeds, WORLD_2)
    else:
        scenes, examples = own_scenes(task, seeds, WORLD_2)
    texts = [TOKENIZER.decode(TOKENIZER.encode(normalise(e.target))) for _, e in examples]
    right = [
        is_right(text, e, scenes[row], WORLD_2)
        for text, (row, e) in zip(texts, examples, strict=True)
    ]
    assert len(right) > 30 and all(right)
    shifted = zip(texts[1:] + texts[:1], examples, strict=True)
    wrong = [is_right(text, e, scenes[row], WORLD_2) for text, (row, e) in shifted]
    assert sum(wrong) < 0.5 * len(wrong)
    assert {e.language for _, e in examples} == {"en", "zh"}
    assert all(groups_of(e)[:2] == ["all", e.language] for _, e in examples)


def test_the_decoder_learns_one_batch_by_heart_and_writes_it():
    run = replace(RUN, learning_rate=1e-2, examples={"ask": 2}, pictures={})
    training = Training(run, torch.device("cpu"), TOKENIZER)
    assert training.stage.name == "decoder"
    model, batch = training.objective.model, task_batch(0, task_settings(run), TOKENIZER)
    towers = {
        name: each.clone()
        for name, each in model.named_parameters()
        if not name.startswith("decoder.")
    }
    losses = [training.train_step(batch)["ask"] for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    for name, each in towers.items():
        assert torch.equal(model.get_parameter(name), each), name
    rows = batch.tasks["ask"]
    written = write_texts(model.eval(), TOKENIZER, batch.pixels, rows)
    assert sum(text == e.target for text, e in zip(written, rows.examples, strict=True)) >= 7


def test_accuracy_has_every_task_language_and_type():
    training = Training(RUN, torch.device("cpu"), TOKENIZER)
    found = task_accuracy(average_network(training), TOKENIZER, TASK, 12, seed=5)
    assert set(found) == {"ask", "caption", "translate", "sentiment"}
    assert set(found["caption"]) == {"all", "en", "zh"} and len(found["ask"]) > 6
    assert all(0 <= share <= 1 for of in found.values() for share in of.values())


def test_the_loss_of_a_task_is_the_mean_over_all_its_tokens():
    training = Training(RUN, torch.device("cpu"), TOKENIZER)
    batch, model = task_batch(1, TASK, TOKENIZER), training.objective.model
    with torch.no_grad():
        losses = training.objective.decoder_losses(batch, torch.Generator())
        for task, rows in batch.tasks.items():
            logs = []
            for row, picture in enumerate(rows.pictures):  # each example alone, no padding
                image = model.image_modality(torch.from_numpy(batch.pixels[picture : picture + 1]))
                length = int((rows.targets[row] != UNKNOWN).sum())
                text = None
                if rows.sources is not None:
                    ids = rows.sources[row][rows.sources[row] != PAD]
                    text = model.text_modality(torch.from_numpy(ids[None]))
                state = model.decoder.start(text, image)
                hidden, _ = model.decoder(
                    torch.from_numpy(rows.inputs[row : row + 1, :length]), state
                )
                chances = model.decoder.logits(hidden, "text").log_softmax(-1)[0]
                logs += [float(chances[t, rows.targets[row, t]]) for t in range(length)]
            assert float(losses[task]) == pytest.approx(-np.mean(logs), abs=1e-4), task


def test_targets_of_probes_fit_the_world_and_ambiguous_words_have_none():
    rng = random.Random(9)
    while True:
        scene = random_scene(rng, WORLD_2)
        if len(scene.things) == 2 and {t.kind for t in scene.things} <= set(WORLD_1.kinds):
            break
    crane = edited(scene, (0, "kind"), "crane bird")
    claims, kinds = plan(crane, rng), WORLD_2.kinds
    bird, machine, other = (
        kinds.index(kind) for kind in ("crane bird", "crane machine", crane.things[1].kind)
    )
    assert scene_kinds(crane, WORLD_2).shape == (len(kinds), 6)
    english, chinese = (caption_kinds(claims, crane, WORLD_2, each) for each in ("en", "zh"))
    assert (english[[bird, machine], 0] == UNKNOWN).all() and (english[bird] == UNKNOWN).all()
    assert chinese[bird, 0] == 1 and chinese[machine, 0] == 0 and chinese[bird, 1] >= 0
    assert (english[other] == chinese[other]).all() and english[other, 0] == 1
    assert (caption_relations(claims, WORLD_2, "en") == UNKNOWN).all()
    assert (caption_relations(claims, WORLD_2, "zh")[[bird, other]] >= 0).all()
    bag = caption_words(claims, crane, WORLD_2, "en")
    assert bag[bird] == bag[machine] == UNKNOWN and len(bag) == len(words_of(WORLD_2))
    assert caption_words(claims, crane, WORLD_2, "zh")[[bird, machine]].tolist() == [1, 0]
