"""What a model folder with a decoder answers: as its decoder writes it, one request or many."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from chiasm.jobs.cli.caption import caption
from chiasm.pipeline.encoders import (
    Answerer,
    EncoderSettings,
    GenerateSettings,
    Reply,
    Request,
    Sampling,
    answer_batch,
    load_answerer,
    pocket_answerer,
)
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.model import generate as generation
from chiasm.pipeline.model.checkpoint import load_model, save_model
from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ImageConfig,
    ModelConfig,
    TextConfig,
)
from chiasm.pipeline.model.decoder import Decoder
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tasks import as_written
from chiasm.pipeline.model.tokenizer import END, Tokenizer, train

PLAIN = EncoderSettings(precision="float32", device="cpu")
WORDS = train(["is the boat red", "a blue cat", "红色的船", "一只猫"] * 3, 300)
CONFIG = ModelConfig(
    ImageConfig(side=36, stem=(8, 16), width=32, depth=1, heads=2),
    TextConfig(vocabulary=len(WORDS), context=12, width=16, depth=1, heads=2),
    dim=8,
    fusion=FusionConfig(width=16, depth=1, heads=2),
    decoder=DecoderConfig(width=16, depth=2, heads=2, context=8, reads_fused=True),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(5)
    network = JointNetwork(CONFIG)
    decoder = network.decoder
    assert decoder is not None
    with torch.no_grad():  # no near ties between tokens
        decoder.embedding.weight.mul_(40)
    made = tmp_path_factory.mktemp("answerer") / "model"
    made.mkdir()
    save_model(made, network.state_dict(), CONFIG, WORDS)
    return made


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (36, 36, 3), dtype=np.uint8)


def requests(answerer):
    one, two = (answerer.preprocess("image", picture(seed)) for seed in (1, 2))
    return [
        Request("ask", "en", one, "is the boat red"),
        Request("caption", "zh", two),
        Request("ask", "zh", one, "红色的船"),
        Request("ask", "en", two, "a very long question " * 5),
        Request("translate", "en", two, "一只猫"),
        Request("sentiment", "en", one, "a blue cat"),
        Request("caption", "en", one),
    ]


def slow(folder, request, steps):
    """The likeliest tokens one by one, all of them computed anew each time."""
    network, tokenizer = load_model(folder)
    decoder, pixels = network.decoder, torch.from_numpy(request.image)[None]
    assert decoder is not None
    text = None
    if request.text is not None:
        ids = torch.from_numpy(tokenizer.batch([request.text], CONFIG.text.context))
        text = network.text_modality(ids)
    tokens, total = [decoder.ids.prefix(request.task, request.language)], 0.0
    while len(tokens) <= steps:
        image = network.image_modality(pixels)
        state = decoder.start(text and network.source(text, image), image)
        hidden, _ = decoder(torch.tensor([tokens]), state)
        logs = decoder.logits(hidden[0, -1], "text").log_softmax(-1)
        tokens.append(int(logs.argmax()))
        total += float(logs.max())
        if tokens[-1] == END:
            return tokenizer.decode(tokens[1:-1]), total / (len(tokens) - 1)
    return tokenizer.decode(tokens[1:]), total / steps


@torch.inference_mode()
def test_replies_are_what_the_decoder_writes(folder):
    answerer = load_answerer(f"pocket:{folder}", PLAIN)
    assert isinstance(answerer, Answerer)
    given = requests(answerer)
    replies = answerer.answer(given, GenerateSettings())
    for request, reply in zip(given, replies, strict=True):
        text, mean = slow(folder, request, CONFIG.decoder.context)
        assert reply.text == as_written(text, request.language)
        assert reply.confidence == pytest.approx(np.exp(mean), rel=1e-4)
    assert len({reply.text for reply in replies}) > 2
    cut = len(WORDS.encode("a very long question " * 4 + "a very long question")) - 10
    assert [reply.truncated for reply in replies] == [0, 0, 0, cut, 0, 0, 0]


def first_log_probabilities(folder, request):
    """Of the first token of an answer, by the decoder alone: (V,) float64."""
    network, tokenizer = load_model(folder)
    decoder = network.decoder
    assert decoder is not None
    ids = torch.from_numpy(tokenizer.batch([request.text], CONFIG.text.context))
    image = network.image_modality(torch.from_numpy(request.image)[None])
    prefix = torch.tensor([[decoder.ids.prefix(request.task, request.language)]])
    source = network.source(network.text_modality(ids), image)
    hidden, _ = decoder(prefix, decoder.start(source, image))
    return decoder.logits(hidden[0, -1], "text").double().log_softmax(-1).numpy(), tokenizer


@torch.inference_mode()
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (30.0, 1.0), (30.0, 0.6)])
def test_tokens_are_drawn_by_the_probabilities_of_the_logits(folder, temperature, top_p):
    """The seed's uniform number, through the inverse of the distribution function."""
    answerer = load_answerer(f"pocket:{folder}", PLAIN)
    request = requests(answerer)[0]
    logs, tokenizer = first_log_probabilities(folder, request)
    powers = np.exp(logs / temperature)
    chances = powers / powers.sum()
    order = np.argsort(-chances, kind="stable")
    sums = np.cumsum(chances[order])
    kept = int(np.searchsorted(sums, top_p)) + 1 if top_p < 1 else len(order)
    drawn = set()
    for seed in range(25):
        point = float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))
        token = int(order[np.searchsorted(sums[:kept], point * sums[kept - 1], side="right")])
        settings = GenerateSettings(max_tokens=1, sampling=Sampling(temperature, top_p, seed))
        (reply,) = answerer.answer([request], settings)
        text = "" if token == END else tokenizer.decode([token])
        assert reply.text == as_written(text, "en")
        assert reply.confidence == pytest.approx(np.exp(logs[token]), rel=1e-3)
        drawn.add(token)
    assert len(drawn) > (10 if temperature > 1 else 0)


def test_equal_seeds_give_equal_answers_whatever_the_batch(folder):
    answerer = load_answerer(f"pocket:{folder}", PLAIN)
    given = requests(answerer)

    def sampled(seed):
        return GenerateSettings(max_tokens=6, sampling=Sampling(temperature=30.0, seed=seed))

    one = [reply.text for reply in answerer.answer(given, sampled(1))]
    assert one == [reply.text for reply in answerer.answer(given, sampled(1))]
    assert one == [answerer.answer([request], sampled(1))[0].text for request in given]
    assert one != [reply.text for reply in answerer.answer(given, sampled(2))]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_reply_does_not_depend_on_its_batch(folder, beams):
    answerer = load_answerer(f"pocket:{folder}", PLAIN)
    settings = GenerateSettings(beams=beams, max_tokens=5)
    together = answerer.answer(requests(answerer), settings)
    alone = [answerer.answer([request], settings)[0] for request in requests(answerer)]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    confidences = [[reply.confidence for reply in replies] for replies in (together, alone)]
    np.testing.assert_allclose(*confidences, rtol=1e-4)
    assert answerer.answer([], settings) == []


@pytest.mark.parametrize(("beams", "pictures"), [(1, 6), (2, 3), (4, 1), (9, 1)])
def test_beams_count_as_rows_of_a_block(folder, monkeypatch, beams, pictures):
    """Memory is that of a block, however many beams there are: of more than a block, of a row."""
    answerer = load_answerer(f"pocket:{folder}", PLAIN)
    given = requests(answerer) * 2
    settings = GenerateSettings(beams=beams, max_tokens=4)
    whole = answerer.answer(given, settings)
    monkeypatch.setattr(pocket_answerer, "BLOCK", 6)
    decoder, rows = load_model(folder)[0].decoder, []
    assert decoder is not None
    monkeypatch.setattr(answerer, "_decoder", decoder)
    decoder.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    found = answerer.answer(given, settings)
    assert [reply.text for reply in found] == [reply.text for reply in whole]
    assert max(rows) == pictures * beams


def test_what_the_model_has_is_what_it_says(folder, tmp_path):
    answerer = load_answerer(f"pocket:{folder}", PLAIN)
    tasks = ("caption", "ask", "translate", "sentiment")
    assert answerer.tasks == dict.fromkeys(tasks, ("en", "zh"))
    with pytest.raises(UsageError, match=r"expected one that can imagine, found one that can capt"):
        answerer.answer([Request("imagine", text="a red boat")], GenerateSettings())
    config = replace(CONFIG, decoder=replace(CONFIG.decoder, prefixes=("caption:zh", "ask:en")))
    save_model(tmp_path, JointNetwork(config).state_dict(), config, WORDS)
    english = load_answerer(f"pocket:{tmp_path}", PLAIN)
    assert english.tasks == {"caption": ("zh",), "ask": ("en",)}
    with pytest.raises(UsageError, match="expected one that can ask in zh, found one for en"):
        english.answer([Request("ask", "zh", None, "红色的船")], GenerateSettings())


def test_an_answer_that_fills_the_room_of_the_model_is_endless(folder, monkeypatch, capsys):
    """Cut by `max_tokens` it is what was wanted."""
    answerer = load_answerer(f"pocket:{folder}", PLAIN)
    given, room = requests(answerer)[:3], CONFIG.decoder.context
    generate = generation.generate

    def never(step, first, state, options, seeds):
        return generate(step, first, state, replace(options, end=-1), seeds)

    def at_the_last(step, first, state, options, seeds):
        rows = len(first)
        ended = torch.ones(rows, dtype=torch.bool)
        return generation.Generated([[20] * (room - 1)] * rows, torch.zeros(rows), ended)

    for written, most, endless in (
        (never, None, True), (never, room + 9, True), (never, room, True),
        (never, room - 1, False), (at_the_last, None, False),
    ):  # fmt: skip
        monkeypatch.setattr(generation, "generate", written)
        for reply in answer_batch(answerer, given, GenerateSettings(max_tokens=most)):
            assert isinstance(reply, Reply) and reply.endless == endless
    monkeypatch.setattr(generation, "generate", never)
    Image.new("RGB", (36, 36), "red").save(folder / "red.png")
    caption([str(folder / "red.png")], f"pocket:{folder}", precision="float32", as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["endless"]
    assert printed.err.endswith("wrote to its limit and did not end its answer\n")


@torch.no_grad()
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, tmp_path, value):
    saved = load_file(folder / "model.safetensors")
    name = "decoder.blocks.0.attention.out.weight"
    for changed, found in (
        ((saved[name] * value), "NaN or infinity"), (saved[name].long(), "torch.int64"),
    ):  # fmt: skip
        made = tmp_path / found.replace(" ", "_")
        shutil.copytree(folder, made)
        save_file({**saved, name: changed}, made / "model.safetensors")
        line = f"{name}: expected finite floating numbers, found {found}; copy the folder again"
        with pytest.raises(EncoderError, match=re.escape(line)):
            load_answerer(f"pocket:{made}", PLAIN)


def test_a_model_that_answers_nothing_is_named_and_not_its_input(folder, monkeypatch, capsys):
    """As a trial shows; of a model that answers others the input is at fault."""
    monkeypatch.setattr(Decoder, "start", lambda *_: 1 / 0)
    made = folder / "red.png"
    Image.new("RGB", (36, 36), "red").save(made)
    with pytest.raises(EncoderError, match=r"^model pocket:\S+: .*, as a trial of caption, found"):
        caption([str(made)], f"pocket:{folder}", precision="float32")
    assert capsys.readouterr().out == ""


def test_a_model_without_a_decoder_answers_nothing(tmp_path):
    config = replace(CONFIG, decoder=None)
    save_model(tmp_path, JointNetwork(config).state_dict(), config, WORDS)
    with pytest.raises(UsageError, match="expected one with a decoder, found one that embeds"):
        load_answerer(f"pocket:{tmp_path}", PLAIN)


def test_commas_are_those_of_the_language():
    assert as_written(" 一艘船,在海面上", "zh") == "一艘船，在海面上"
    assert as_written(" a boat, at sea", "en") == "a boat, at sea"


def test_the_tokenizer_counts_what_is_cut():
    long = "a blue cat " * 9
    ids = WORDS.encode(long.strip())
    assert WORDS.tokens_cut(long, 12) == len(ids) - 10 > 0
    assert WORDS.tokens_cut("a cat", 12) == 0
    assert isinstance(Tokenizer.from_json(WORDS.to_json()), Tokenizer)
