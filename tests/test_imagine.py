"""Pictures drawn from texts: what is learned, what is written, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from chiasm.jobs.cli.imagine import imagine
from chiasm.pipeline.encoders import (
    EncoderSettings,
    Fault,
    GenerateSettings,
    Reply,
    Request,
    Sampling,
    load_answerer,
    load_encoder,
    pocket_answerer,
)
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.model import checkpoint
from chiasm.pipeline.model.checkpoint import load_config, load_model, load_state, save_model
from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ImageConfig,
    ImageTokensConfig,
    ModelConfig,
    TextConfig,
)
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import train as train_tokenizer
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.world import WORLD_1, gallery
from chiasm.pipeline.training.pocket import evaluate_imagine
from chiasm.pipeline.training.pocket.data import DataSettings
from chiasm.pipeline.training.pocket.evaluate_imagine import draw_gallery, measure_drawings
from chiasm.pipeline.training.pocket.image_tokens import piece_batch
from chiasm.pipeline.training.pocket.loop import tokenizer_of, train
from chiasm.pipeline.training.pocket.settings import TrainSettings, task_settings
from chiasm.pipeline.training.pocket.state import STATE
from chiasm.pipeline.training.pocket.task_data import task_batch
from chiasm.pipeline.training.pocket.trainer import Training

PLAIN = EncoderSettings(precision="float32", device="cpu")
MODEL = ModelConfig(
    ImageConfig(side=36, stem=(8, 8), width=16, depth=1, heads=2),
    TextConfig(vocabulary=600, context=48, width=32, depth=1, heads=2),
    dim=16,
    fusion=None,
    decoder=DecoderConfig(width=48, depth=1, heads=3, context=16),
    image_tokens=ImageTokensConfig(side=36, stride=12, levels=(4, 3), width=16, depth=(0, 1)),
)
RUN = TrainSettings(
    steps=1, image_token_steps=3, image_token_batch=2, decoder_steps=2, decoder_batch=3,
    examples={"imagine": 1}, pictures={}, corpus=40, warmup=0.1, learning_rate=1e-2, gallery=4,
    log_every=1, checkpoint_every=1, evaluate_every=100,
    data=DataSettings(seed=3, batch=4, side=36, context=48, world="world 2"), model=MODEL,
)  # fmt: skip


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """A training that has learned to draw the pictures of one batch, the batch, and the folder of
    the model."""
    fused = replace(
        MODEL,
        fusion=FusionConfig(width=16, depth=1, heads=2),
        decoder=replace(MODEL.decoder, reads_fused=True),
    )
    run = replace(
        RUN,
        model=fused,
        steps=0,
        fusion_steps=0,
        image_token_steps=0,
        decoder_steps=80,
        decoder_batch=5,
    )
    tokenizer = tokenizer_of(run)
    training = Training(run, torch.device("cpu"), tokenizer)
    tokens = training.objective.model.image_tokens
    assert tokens is not None
    tokens.half().float()  # as they are saved: of untrained codes some are near ties
    batch = task_batch(0, task_settings(run), tokenizer)
    losses = [training.train_step(batch)["imagine"] for _ in range(80)]
    folder = tmp_path_factory.mktemp("drawing")
    save_model(
        folder, training.objective.model.state_dict(), training.objective.model.config, tokenizer
    )
    return batch, losses, folder


def test_a_batch_learned_by_heart_is_drawn_code_by_code(drawing):
    batch, losses, folder = drawing
    assert losses[-1] < 0.05 * losses[0]
    model, _ = load_model(folder)
    tokens = model.image_tokens
    assert tokens is not None
    codes = tokens.encode(torch.from_numpy(batch.pixels))
    assert len(codes.unique(dim=0)) == len(codes) > 4
    expected = tokens.decode(codes).permute(0, 2, 3, 1).numpy()
    requests = [
        Request("imagine", text=example.source) for example in batch.tasks["imagine"].examples
    ]
    answerer = load_answerer(f"pocket:{folder}", PLAIN)
    assert "imagine" in answerer.tasks
    for settings in (GenerateSettings(), GenerateSettings(beams=2), GenerateSettings(max_tokens=2)):
        for reply, wanted in zip(answerer.answer(requests, settings), expected, strict=True):
            assert reply.text == "" and reply.confidence is not None and reply.confidence > 0.8
            assert reply.image is not None and reply.image.dtype == np.uint8
            assert np.array_equal(reply.image, wanted)


def test_the_picture_is_not_seen_by_what_draws_it(drawing):
    batch, _, folder = drawing
    tokenizer = load_model(folder)[1]
    run = replace(RUN, steps=0, image_token_steps=0)
    training = Training(run, torch.device("cpu"), tokenizer)
    generator = torch.Generator()
    before = training.objective.decoder_losses(batch, generator)["imagine"]
    with torch.no_grad():
        for parameter in training.objective.model.image.parameters():
            parameter.mul_(3).add_(0.1)
    assert torch.equal(training.objective.decoder_losses(batch, generator)["imagine"], before)


@torch.inference_mode()
def test_the_loss_is_that_of_each_code_alone(drawing):
    """The second route: each code's probability after those before it, one picture at a time."""
    batch, _, folder = drawing
    model, tokenizer = load_model(folder)
    decoder, tokens = model.decoder, model.image_tokens
    assert decoder is not None and tokens is not None
    run = replace(RUN, steps=0, fusion_steps=0, image_token_steps=0, model=model.config)
    training = Training(run, torch.device("cpu"), tokenizer)
    training.objective.model.load_state_dict(model.state_dict())
    found = training.objective.decoder_losses(batch, torch.Generator())["imagine"]
    first, count = decoder.ids.range("codes")
    assert count == 12
    logs = []
    for row, example in enumerate(batch.tasks["imagine"].examples):
        text = model.text_modality(torch.from_numpy(tokenizer.batch([example.source], 48)))
        text = model.source(text, None)
        ids = [decoder.ids.prefix("imagine")]
        for code in tokens.encode(torch.from_numpy(batch.pixels[row : row + 1]))[0].tolist():
            hidden, _ = decoder(torch.tensor([ids]), decoder.start(text, None), "codes")
            logs.append(decoder.logits(hidden[0, -1], "codes").log_softmax(-1)[code])
            ids.append(first + code)
    assert found.item() == pytest.approx(-torch.stack(logs).mean().item(), rel=1e-4)


def test_drawn_codes_are_of_the_seed_and_of_pictures_alone(drawing):
    batch, _, folder = drawing
    model, tokenizer = load_model(folder)
    decoder = model.decoder
    assert decoder is not None
    first, _ = decoder.ids.range("codes")
    with torch.no_grad():  # codes at random, and texts that would be likelier than any
        decoder.embedding.weight[:first] *= 50
        decoder.embedding.weight[first:] *= 0.01
    save_model(folder / "dull", model.state_dict(), model.config, tokenizer)
    answerer = load_answerer(f"pocket:{folder}/dull", PLAIN)
    text = batch.tasks["imagine"].examples[0].source
    requests = [Request("imagine", text=text), Request("imagine", text=text + "!")]

    def drawn(requests, seed):
        settings = GenerateSettings(sampling=Sampling(1.0, seed=seed))
        return [reply.image.tobytes() for reply in answerer.answer(requests, settings)]

    both = drawn(requests, 1)
    assert both == drawn(requests, 1) == drawn(requests[:1], 1) + drawn(requests[1:], 1)
    assert len({*both, *drawn(requests, 2), *drawn(requests, 3)}) >= 3


def at_random(answerer, texts, candidates, seed):
    settings = GenerateSettings(sampling=Sampling(3.0, seed=seed), candidates=candidates)
    return answerer.answer([Request("imagine", text=text) for text in texts], settings)


@torch.no_grad()
def test_of_candidates_the_one_that_matches_best_is_kept(drawing, monkeypatch):
    """The second route: each candidate drawn alone by its own seed, each pair matched alone."""
    batch, _, folder = drawing
    model, tokenizer = load_model(folder)
    assert model.matching is not None
    # Pictures that an untrained matching tells apart.
    model.matching.conflict.weight.normal_(generator=torch.Generator().manual_seed(1))
    save_model(folder / "matching", model.state_dict(), model.config, tokenizer)
    answerer = load_answerer(f"pocket:{folder}/matching", PLAIN)
    texts = [example.source for example in batch.tasks["imagine"].examples[:2]]
    kept = at_random(answerer, texts, 4, seed=2**63 - 2)  # the next one is the least there is
    seeds = [2**63 - 2, 2**63 - 1, -(2**63), -(2**63) + 1]
    for text, reply in zip(texts, kept, strict=True):
        drawn = [at_random(answerer, [text], 1, seed)[0] for seed in seeds]
        pixels = torch.from_numpy(np.stack([one.image for one in drawn])).permute(0, 3, 1, 2)
        ids = torch.from_numpy(tokenizer.batch([text] * 4, 48))
        logits = model.match(model.text_modality(ids), model.image_modality(pixels)).logit
        first, second = logits.topk(2).values.tolist()
        assert first - second > 1e-4  # no tie
        best = drawn[int(logits.argmax())]
        assert np.array_equal(reply.image, best.image)
        assert reply.confidence == pytest.approx(best.confidence, rel=1e-4)
    monkeypatch.setattr(pocket_answerer, "BLOCK", 5)  # of eight rows, four at a time
    for one, other in zip(kept, at_random(answerer, texts, 4, 2**63 - 2), strict=True):
        assert np.array_equal(one.image, other.image)


@torch.no_grad()
def test_a_candidate_whose_match_is_nan_is_not_the_best(drawing, monkeypatch):
    batch, _, folder = drawing
    answerer = load_answerer(f"pocket:{folder}", PLAIN)
    (text,) = (example.source for example in batch.tasks["imagine"].examples[:1])
    network = answerer._network
    match = network.match

    def with_nan(logits):
        def nan_first(*given):
            found = match(*given)
            return replace(found, logit=found.logit + torch.tensor(logits))

        monkeypatch.setattr(network, "match", nan_first)

    with_nan([torch.nan, 0.0, 100.0])
    (kept,) = at_random(answerer, [text], 3, seed=5)
    assert np.array_equal(kept.image, at_random(answerer, [text], 1, seed=7)[0].image)
    with_nan([torch.inf, 0.0, 100.0])
    (kept,) = at_random(answerer, [text], 3, seed=5)
    assert np.array_equal(kept.image, at_random(answerer, [text], 1, seed=7)[0].image)
    with_nan([torch.nan, -torch.inf, torch.inf])
    with pytest.raises(Fault, match="not_finite"):
        at_random(answerer, [text], 3, seed=5)


def test_a_model_that_does_not_match_draws_one_candidate(whole):
    answerer = load_answerer(f"pocket:{whole[0]}", PLAIN)
    assert at_random(answerer, ["a boat"], 1, 0)[0].image is not None
    (by_default,) = at_random(answerer, ["a boat"], None, 0)
    assert np.array_equal(by_default.image, at_random(answerer, ["a boat"], 1, 0)[0].image)
    with pytest.raises(UsageError, match="expected one that matches, to choose among candidates"):
        at_random(answerer, ["a boat"], 2, 0)


def test_nothing_is_chosen_where_nothing_is_drawn_at_random(tmp_path):
    for more in ({"seed": 1}, {"candidates": 2}):
        with pytest.raises(UsageError, match=r"^--temperature 0: expected one picture, of which"):
            imagine(["a boat"], str(tmp_path / "boat.png"), temperature=0.0, **more)


class Killed(BaseException):
    pass


def learned(folder, run=RUN, **more):
    return train(run, folder, device="cpu", precision="float32", workers=0, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, learned(folder)


def test_the_stages_of_a_training_that_draws(whole):
    folder, losses = whole
    assert [sorted(each.keys() - {"loss", "norm"}) for each in losses[1:]] == [
        *[["edges", "features", "pixels"]] * 3, *[["imagine"]] * 2,
    ]  # fmt: skip
    model, _ = load_model(folder)
    assert model.config.image_tokens == MODEL.image_tokens and model.image_tokens is not None
    assert "imagine" in load_answerer(f"pocket:{folder}", PLAIN).tasks


@pytest.mark.parametrize("step", range(1, 6))
def test_a_kill_before_any_step_costs_nothing(step, whole, tmp_path):
    folder, losses = whole
    train_step = Training.train_step

    def mortal(self, batch):
        if self.step == step:
            raise Killed
        return train_step(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Training, "train_step", mortal)
        learned(tmp_path)
    assert load_state(tmp_path / STATE)[1]["step"] == step
    assert learned(tmp_path) == losses[step:]
    for name in checkpoint.FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_image_tokens_learn_alone_on_towers_that_stay(whole, tmp_path):
    folder, _ = whole
    run = replace(RUN, image_token_steps=12, model=replace(MODEL, decoder=None))
    losses = learned(tmp_path, run, towers=folder)
    assert len(losses) == 12 and all("pixels" in each for each in losses)
    before, after = (load_model(each)[0].state_dict() for each in (folder, tmp_path))
    for name, weight in after.items():
        assert torch.equal(weight, before[name]) != name.startswith("image_tokens."), name


def test_image_tokens_learn_pictures_shown_again_and_again(whole):
    run = replace(
        RUN, steps=0, image_token_steps=40, learning_rate=2e-3, model=replace(MODEL, decoder=None)
    )
    training = Training(run, torch.device("cpu"), load_model(whole[0])[1])
    assert training.stage.name == "image tokens"
    batch = piece_batch(0, training.stage.data)
    losses = [training.train_step(batch)["loss"] for _ in range(40)]
    assert losses[-1] < 0.75 * losses[0]


def test_without_image_tokens_nothing_is_drawn(tmp_path):
    run = replace(RUN, model=replace(MODEL, image_tokens=None), examples={"imagine": 1, "ask": 1})
    assert list(task_settings(run).examples) == ["ask"]
    words = train_tokenizer(["a red boat", "红色的船"] * 3, 300)
    text = replace(MODEL.text, vocabulary=len(words))
    config = replace(MODEL, image_tokens=None, text=text)
    save_model(tmp_path, JointNetwork(config).state_dict(), config, words)
    # As folders of before have it.
    assert "image_tokens" not in json.loads((tmp_path / "config.json").read_text())
    assert load_config(tmp_path) == config
    with pytest.raises(UsageError, match=r"expected one that can imagine, found one that can capt"):
        imagine(["a boat"], str(tmp_path / "boat.png"), f"pocket:{tmp_path}")
    assert not (tmp_path / "boat.png").exists()


def test_the_shapes_of_image_tokens_are_saved_and_checked(tmp_path, whole):
    folder, _ = whole
    assert load_config(folder).image_tokens == MODEL.image_tokens
    assert ModelConfig.from_dict(json.loads(json.dumps(MODEL.to_dict()))) == MODEL
    fields = json.loads((folder / "config.json").read_text())
    for name in checkpoint.FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    fields["image_tokens"]["levle"] = [2]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(EncoderError, match="levle"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="context 8: expected at least the 9 codes of a picture"):
        replace(MODEL, decoder=replace(MODEL.decoder, context=8))


def test_the_command_writes_the_picture(drawing, tmp_path, capsys):
    _, _, folder = drawing
    path = tmp_path / "boat.png"
    greedy = {"temperature": 0.0, "device": "cpu"}
    imagine(["a red boat"], str(path), f"pocket:{folder}", as_json=True, **greedy)
    found = json.loads(capsys.readouterr().out)
    assert found["answer"] == str(path) and 0 < found["confidence"] <= 1
    with Image.open(path) as image:
        assert (image.size, image.mode, image.format) == ((36, 36), "RGB", "PNG")
        likeliest = image.tobytes()
    for seed in (1, 2):
        imagine(["a red boat"], str(path), f"pocket:{folder}", 1, temperature=30.0, seed=seed)
        with Image.open(path) as image:
            assert image.tobytes() != likeliest


def test_drawings_are_judged_by_another_model_and_by_their_pixels(monkeypatch):
    """Pictures that are the true ones get the figures of the true ones, grey ones none, and those
    that have been through codes what is said of codes."""
    encoder = load_encoder("pocket", PLAIN)
    tokens = encoder.network.image_tokens
    monkeypatch.setattr(evaluate_imagine, "GALLERY", 24)

    class Painter:
        def __init__(self, paint):
            self.paint = paint

        def answer(self, requests, settings):
            return [
                Reply("", np.asarray(self.paint(scene)))
                for scene, _ in zip(self.scenes, requests, strict=True)
            ]

    def through_codes(scene):
        pixels = torch.from_numpy(to_pixels(picture(scene), tokens.config.side))[None]
        return tokens.decode(tokens.encode(pixels))[0].permute(1, 2, 0).numpy()

    paints = {
        "true": picture, "grey": lambda _: Image.new("RGB", (72, 72)), "coded": through_codes,
    }  # fmt: skip
    found = {}
    for name, paint in paints.items():
        painter = Painter(paint)
        painter.scenes = gallery(24, 5, WORLD_1)
        drawings = draw_gallery(painter, 5, WORLD_1, GenerateSettings())
        assert len({text.isascii() for text in drawings.texts}) == 2
        found[name] = measure_drawings(drawings, encoder, tokens)
    assert found["true"]["r1"] == found["true"]["true_r1"] == found["grey"]["true_r1"] > 0.7
    assert found["true"]["agrees"] == found["true"]["true_agrees"] > 0.9
    assert found["grey"]["r1"] < 0.3 and found["grey"]["agrees"] == 0
    for figure in "r1", "agrees":
        assert found["coded"][figure] == found["grey"][f"coded_{figure}"] > 0.4
    assert "coded_r1" not in measure_drawings(drawings, encoder)
