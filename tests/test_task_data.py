"""What the decoder is trained on, what it learns from it, and how its writing is judged."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ImageConfig,
    ImageTokensConfig,
    ModelConfig,
    TextConfig,
)
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tasks import PREFIXES, TASKS
from chiasm.pipeline.model.tokenizer import END, PAD, normalise
from chiasm.pipeline.scenes.claims import OPPOSITE, holds
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.parse import parse_caption
from chiasm.pipeline.scenes.unseen import withheld, withheld_in
from chiasm.pipeline.scenes.words import plan
from chiasm.pipeline.scenes.world import WORLD_1, WORLD_2, edited, random_scene
from chiasm.pipeline.training.pocket import evaluate_tasks, task_data
from chiasm.pipeline.training.pocket.data import DataSettings, scenes_of
from chiasm.pipeline.training.pocket.evaluate_tasks import (
    Examples,
    decoder_accuracy,
    draw_examples,
    encode_examples,
    groups_of,
    is_right,
    write_texts,
)
from chiasm.pipeline.training.pocket.loop import average_network, tokenizer_of
from chiasm.pipeline.training.pocket.packing import by_length
from chiasm.pipeline.training.pocket.settings import TrainSettings, measured_tasks, task_settings
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
    TaskBatch,
    examples_of,
    own_scenes,
    task_batch,
    task_rows,
)
from chiasm.pipeline.training.pocket.trainer import Training

CODES = ImageTokensConfig(side=36, stride=12, width=16, depth=(1, 1))
RUN = TrainSettings(
    steps=0, fusion_steps=0, decoder_steps=60, decoder_batch=4,
    examples={"ask": 2, "caption": 1, "translate": 1},
    pictures={"sentiment": 2}, corpus=60, warmup=0.1, learning_rate=3e-3,
    decoder_gallery=16,
    data=DataSettings(seed=3, side=36, context=48, world="world 2"),
    model=ModelConfig(
        ImageConfig(side=36, stem=(8, 8), width=32, depth=1, heads=2),
        TextConfig(vocabulary=900, context=48, width=32, depth=1, heads=2),
        dim=16,
        fusion=FusionConfig(width=16, depth=1, heads=2),
        decoder=DecoderConfig(width=48, depth=1, heads=3, context=64, reads_fused=True),
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


def test_a_training_asks_of_relations_more_often_and_what_measures_asks_evenly():
    """Of scenes with things enough for any type of question: 4 of 19, and 1 of 16."""
    rng = random.Random(6)
    scenes = [
        scene
        for scene in (random_scene(rng, WORLD_2) for _ in range(900))
        if len(scene.things) == 3
    ]
    seeds, counts = [str(n) for n in range(len(scenes))], [4] * len(scenes)
    shares = []
    for draw in (task_data.TRAINED, task_data.DRAWN):
        drawn = examples_of(scenes, "ask", counts, seeds, WORLD_2, draw)
        shares.append(np.mean([example.kind == "is_related" for _, example in drawn]))
    assert shares[0] > 2 * shares[1] > 0
    assert examples_of(scenes[:20], "ask", counts[:20], seeds[:20], WORLD_2) == examples_of(
        scenes[:20], "ask", counts[:20], seeds[:20], WORLD_2, task_data.DRAWN
    )
    batch = task_batch(3, TASK, TOKENIZER)
    rows = [
        (int(row), e)
        for row, e in zip(batch.tasks["ask"].pictures, batch.tasks["ask"].examples, strict=True)
    ]
    own = scenes_of(3, TASK.scenes)
    seeds = [f"ask {TASK.scenes.seed} 3 {n}" for n in range(len(own))]
    assert [r for r in rows if r[0] < len(own)] == examples_of(
        own, "ask", [2] * len(own), seeds, WORLD_2, task_data.TRAINED
    )


def test_processes_share_the_examples_of_one_batch():
    double = replace(TASK, scenes=replace(TASK.scenes, batch=8), pictures={"sentiment": 4})
    whole = task_batch(5, double, TOKENIZER)
    parts = [task_batch(5, TASK, TOKENIZER, rank, 2) for rank in range(2)]
    for task, rows in whole.tasks.items():
        examples = [each for part in parts for each in part.tasks[task].examples]
        assert sorted(map(repr, examples)) == sorted(map(repr, rows.examples)), task


def test_a_task_of_a_share_of_pictures_has_every_so_many_whatever_the_processes():
    shared = replace(TASK, examples={"ask": 1.5, "caption": 0.25})
    double = replace(shared, scenes=replace(shared.scenes, batch=8), pictures={"sentiment": 4})
    whole = task_batch(1, double, TOKENIZER)
    # Of pictures 12 to 23 of all steps: of those with moods, 20 to 23, the last.
    assert whole.tasks["caption"].pictures.tolist() == [3, 7, 11]
    each = np.bincount(whole.tasks["ask"].pictures, minlength=12)
    assert (each <= [1, 2] * 6).all() and each.sum() >= 15  # a scene may have no such question
    half = replace(shared, scenes=replace(shared.scenes, batch=4), pictures={"sentiment": 2})
    parts = [task_batch(1, half, TOKENIZER, rank, 2) for rank in (0, 1)]
    assert [len(part.tasks["caption"].examples) for part in parts] == [1, 2]
    for task, rows in whole.tasks.items():
        examples = [each for part in parts for each in part.tasks[task].examples]
        assert sorted(map(repr, examples)) == sorted(map(repr, rows.examples)), task


def test_a_task_of_few_pictures_has_none_in_most_steps_and_a_loss_of_0_there():
    few = replace(
        RUN,
        examples={"imagine": 0.05, "caption": 1},
        pictures={},
        decoder_batch=4,
        image_token_steps=0,
    )
    few = replace(few, model=replace(few.model, image_tokens=CODES))
    training = Training(few, torch.device("cpu"), TOKENIZER)
    batches = [task_batch(step, task_settings(few), TOKENIZER) for step in range(10)]
    assert [len(batch.tasks["imagine"].examples) for batch in batches] == [0, 0, 0, 0, 1] * 2
    losses = training.backward(batches[0])
    assert losses["imagine"] == 0 and losses["caption"] > 1
    for share in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="examples of caption: expected a number above 0"):
            replace(TASK, examples={"caption": share})


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


def withheld_claims(claims):
    """Whether a caption's claims state a withheld combination."""
    return any(
        withheld(claims.things[thing].colour, claims.things[thing].kind, name)
        for i, relation, j in claims.relations
        for thing, name in ((i, relation), (j, OPPOSITE[relation]))
        if claims.things[thing].colour and claims.things[thing].kind
    )


def test_no_picture_of_a_batch_shows_a_withheld_combination(monkeypatch):
    """Nor does a caption in it state one, as read back from its words."""
    scenes = []
    monkeypatch.setattr(task_data, "picture", lambda scene: scenes.append(scene) or picture(scene))
    targets = set()
    for step in range(12):
        tasks = task_batch(step, TASK, TOKENIZER).tasks
        targets |= {(e.language, e.target) for e in tasks["caption"].examples}
    assert len(scenes) == 12 * 6 and not any(withheld_in(scene) for scene in scenes)
    stated = 0
    for language, target in targets:  # an ambiguous word may name a withheld one in its other sense
        found = [withheld_claims(claims) for claims in parse_caption(target, language, WORLD_2)]
        stated += any(claims.relations for claims in parse_caption(target, language, WORLD_2))
        assert not all(found), target
    assert stated > 20


def test_every_target_fits_into_the_decoder_and_one_that_does_not_is_refused():
    """With a tokenizer of fewer texts than the recipe's, which needs more tokens for them."""
    recipe = TrainSettings()
    tokenizer = tokenizer_of(replace(recipe, corpus=100))
    tasks, longest = task_settings(recipe), 0
    for of in draw_examples(tasks, 200, seed=8):
        rows = task_rows(of.examples, of.task, tasks, tokenizer)
        longest = max(longest, rows.targets.shape[1])
    assert 20 < longest <= recipe.model.decoder.context
    short = replace(tasks, target=longest - 1)
    with pytest.raises(UsageError, match=rf"most {longest - 1} tokens, .* found {longest}; train"):
        for of in draw_examples(short, 200, seed=8):
            task_rows(of.examples, of.task, short, tokenizer)


def test_a_task_that_cannot_be_drawn_or_has_no_prefix_is_refused_in_one_line():
    with pytest.raises(
        UsageError,
        match=r"^examples: task 'asks': expected caption or ask or translate or imagine$",
    ):
        task_settings(replace(RUN, examples={"asks": 1}))
    with pytest.raises(UsageError, match=r"^pictures: task 'ask': expected sentiment"):
        task_settings(replace(RUN, pictures={"ask": 1}))
    decoder = replace(RUN.model.decoder, prefixes=("ask:en", "sentiment:zh", "sentiment:en"))
    english = replace(RUN, model=replace(RUN.model, decoder=decoder))
    with pytest.raises(UsageError, match=r"'ask': expected a decoder that .* no ask:zh; leave"):
        task_settings(replace(english, examples={"ask": 1}))
    settings = task_settings(replace(english, examples={}))  # in another order, by its own ids
    rows = task_batch(0, settings, TOKENIZER).tasks["sentiment"]
    for example, first in zip(rows.examples, rows.inputs[:, 0], strict=True):
        assert first - len(TOKENIZER) == {"zh": 1, "en": 2}[example.language]


def test_a_tokenizer_knows_the_tasks_that_its_world_has_with_a_decoder_or_without():
    alone = replace(RUN, model=replace(RUN.model, decoder=None))
    assert tokenizer_of(alone).to_json() == TOKENIZER.to_json()
    first = replace(alone, data=replace(RUN.data, world="world 1"))  # which has no moods
    assert len(tokenizer_of(first)) > 259


def test_examples_of_like_length_go_together_each_once():
    for task, rows in task_batch(3, replace(TASK, examples={"ask": 9}), TOKENIZER).tasks.items():
        parts, found = list(by_length(rows)), []
        for part in parts:
            assert (part.targets != UNKNOWN).any(axis=0).all()  # no column is padding alone
            assert part.sources is None or (part.sources != PAD).any(axis=0).all()
            for row, example in enumerate(part.examples):
                target = part.targets[row][part.targets[row] != UNKNOWN]
                source = part.sources[row][part.sources[row] != PAD] if task != "caption" else []
                inputs = part.inputs[row][: len(target)]
                key = (part.pictures[row], *inputs, *target, *source)
                found.append((repr(example), tuple(map(int, key))))
        expected = []
        for row, example in enumerate(rows.examples):
            target = rows.targets[row][rows.targets[row] != UNKNOWN]
            source = rows.sources[row][rows.sources[row] != PAD] if task != "caption" else []
            key = (rows.pictures[row], *rows.inputs[row][: len(target)], *target, *source)
            expected.append((repr(example), tuple(map(int, key))))
        assert sorted(found) == sorted(expected), task
        if task == "ask":
            assert len(parts) > 1
            assert sum(part.sources.size for part in parts) < 0.8 * rows.sources.size


@pytest.mark.parametrize("task", [task for task in TASKS if TASKS[task].head == "text"])
def test_what_is_wanted_is_right_and_what_is_wanted_of_another_seldom(task):
    """Through the tokenizer, which gives Chinese another comma."""
    rng, seeds = random.Random(4), [str(n) for n in range(40)]
    if task in DRAWN:
        scenes = [random_scene(rng, WORLD_2) for _ in seeds]
        examples = examples_of(scenes, task, [1] * len(scenes), seeds, WORLD_2)
    else:
        scenes, examples = own_scenes(task, seeds, WORLD_2)
    texts = [TOKENIZER.decode(TOKENIZER.encode(normalise(e.target))) for _, e in examples]
    right = [
        is_right(text, e, scenes[row], WORLD_2)
        for text, (row, e) in zip(texts, examples, strict=True)
    ]
    assert len(right) > 30 and all(right)
    for row, example in examples:
        for text, (other_row, other) in zip(texts, examples, strict=True):
            if other.language != example.language or other_row == row:
                continue
            found = is_right(text, example, scenes[row], WORLD_2)
            if task == "caption" or task == "translate":  # asked of the facts
                readings = parse_caption(other.target, other.language, WORLD_2)
                assert found <= any(holds(claims, scenes[row]) for claims in readings)
            else:
                assert found == (normalise(other.target) == normalise(example.target))
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
    scenes, settings = scenes_of(0, task_settings(run).scenes), task_settings(run)
    examples = list(zip(rows.pictures.tolist(), rows.examples, strict=True))
    blocks = encode_examples(model.eval(), TOKENIZER, settings, Examples("ask", scenes, examples))
    written = write_texts(model, TOKENIZER, blocks)
    assert sum(text == e.target for text, e in zip(written, rows.examples, strict=True)) >= 7


def slowly_written(model, of, number):
    """What is written for one example, alone, a whole pass for each token."""
    row, example = of.examples[number]
    pixels = torch.from_numpy(to_pixels(picture(of.scenes[row]), 36))[None]
    text = None
    if example.task != "caption":
        text = model.text_modality(torch.from_numpy(TOKENIZER.batch([example.source], 48)))
    prefix = f"{example.task}:{example.language}"
    ids = [len(TOKENIZER) + PREFIXES.index(prefix)]
    while len(ids) < 64:
        image = model.image_modality(pixels)
        state = model.decoder.start(text and model.source(text, image), image)
        hidden, _ = model.decoder(torch.tensor([ids]), state)
        ids.append(int(model.decoder.logits(hidden[0, -1], "text").argmax()))
        if ids[-1] == END:
            break
    return TOKENIZER.decode(ids[1:])


@torch.no_grad()
def test_accuracy_is_that_of_each_example_written_alone(monkeypatch):
    """Pictures are drawn and go through the towers once, however often models are evaluated."""
    drawn = []
    monkeypatch.setattr(
        evaluate_tasks, "picture", lambda scene: drawn.append(scene) or picture(scene)
    )
    run = replace(RUN, learning_rate=1e-2)
    training = Training(run, torch.device("cpu"), TOKENIZER)
    gallery = draw_examples(TASK, run.decoder_gallery, run.gallery_seed)
    of_ask = next(of for of in gallery if of.task == "ask")  # the very ones that are evaluated
    pixels = np.stack([to_pixels(picture(scene), 36) for scene in of_ask.scenes])
    batch = TaskBatch(pixels, {"ask": task_rows(of_ask.examples, "ask", TASK, TOKENIZER)})
    evaluate = decoder_accuracy(average_network(training), TOKENIZER, run)
    before = evaluate(average_network(training))["accuracy"]
    count = len(drawn)
    with torch.enable_grad():
        for _ in range(40):
            training.train_step(batch)
    model = average_network(training)
    found = evaluate(model)["accuracy"]
    assert len(drawn) == count and before["ask"]["all"] == 0
    assert set(found) == {"ask", "caption", "translate", "sentiment"}
    assert set(found["caption"]) == {"all", "en", "zh"}
    for of in gallery:
        groups = {}
        for number, (row, example) in enumerate(of.examples):
            right = is_right(slowly_written(model, of, number), example, of.scenes[row], WORLD_2)
            kinds = {example.kind, f"{example.language} {example.kind}"} if example.kind else set()
            for name in {"all", example.language, *kinds}:
                groups.setdefault(name, []).append(right)
        assert found[of.task] == {n: round(sum(v) / len(v), 4) for n, v in groups.items()}, of.task
    assert found["ask"]["all"] > 0.5


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
                state = model.decoder.start(text and model.source(text, image), image)
                hidden, _ = model.decoder(
                    torch.from_numpy(rows.inputs[row : row + 1, :length]), state
                )
                chances = model.decoder.logits(hidden, "text").log_softmax(-1)[0]
                logs += [float(chances[t, rows.targets[row, t]]) for t in range(length)]
            assert float(losses[task]) == pytest.approx(-np.mean(logs), abs=1e-4), task


def test_a_batch_without_any_target_has_a_gradient_of_0():
    training = Training(RUN, torch.device("cpu"), TOKENIZER)
    batch, decoder = task_batch(1, TASK, TOKENIZER), training.objective.model.decoder
    none = {
        task: replace(
            rows, pictures=rows.pictures[:0], inputs=rows.inputs[:0], targets=rows.targets[:0]
        )
        for task, rows in batch.tasks.items()
    }
    decoder.requires_grad_(True)
    losses = training.objective.decoder_losses(replace(batch, tasks=none), torch.Generator())
    torch.stack(list(losses.values())).sum().backward()
    assert set(losses) == set(batch.tasks) and all(loss.item() == 0 for loss in losses.values())
    assert all(p.grad is None or not p.grad.any() for p in decoder.parameters())


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


def test_only_tasks_that_the_decoder_has_in_every_language_are_measured():
    """A decoder that was kept of `train joint` may have been taught questions in English alone."""
    decoder = DecoderConfig(prefixes=("caption:en", "caption:zh", "ask:en"))
    kept = replace(RUN, decoder_steps=0, model=replace(RUN.model, decoder=decoder))
    with pytest.raises(UsageError, match="ask"):
        task_settings(kept)
    found = measured_tasks(kept)
    assert set(found.examples) <= {"caption"} and not found.pictures
    assert measured_tasks(RUN) == task_settings(RUN)
