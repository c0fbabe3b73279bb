"""hf: answerers give what transformers gives when it is called directly, on tiny random models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT
from PIL import Image
from random_models import clip_folder
from tiny_answerers import (
    LABELS,
    blip2_folder,
    blip_folder,
    idefics_folder,
    llava_folder,
    vilt_folder,
)

from chiasm.pipeline.encoders import (
    EncoderSettings,
    Fault,
    GenerateSettings,
    Request,
    Sampling,
    answer_batch,
    huggingface_generate,
    load_answerer,
)
from chiasm.pipeline.encoders.huggingface_answers import BLIP2_QUESTION, CHAT_PROMPTS
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.scenes.sentiment import LABELS as SENTIMENTS

MAKERS = {
    "caption": blip_folder,
    "questions": lambda at: blip_folder(at, "BlipForQuestionAnswering"),
    "vilt": vilt_folder,
    "blip2": blip2_folder,
    "llava": llava_folder,
    "idefics": idefics_folder,
}
NETWORKS = {
    "caption": "BlipForConditionalGeneration",
    "questions": "BlipForQuestionAnswering",
    "blip2": "Blip2ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "idefics": "Idefics3ForConditionalGeneration",
}
FLOAT32 = EncoderSettings(precision="float32", device="cpu")
LENGTH = 7
POSITIONS = 150
GREEDY = GenerateSettings(max_tokens=LENGTH)
BEAMS = GenerateSettings(max_tokens=LENGTH, beams=3)
TEXTS = ["what colour is the boat", "how many boats?", "what"]
GENERATED = [
    ("caption", "caption", "en"),
    ("questions", "ask", "en"),
    ("blip2", "caption", "en"),
    ("blip2", "ask", "en"),
    ("llava", "caption", "en"),
    ("llava", "translate", "zh"),
    ("idefics", "ask", "en"),
    ("idefics", "sentiment", "zh"),
]


def picture(seed):
    """Four flat areas: pictures that a random model tells from each other."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return np.kron(small, np.ones((20 + 4 * seed, 30, 1), np.uint8))


PICTURES = [picture(seed) for seed in range(len(TEXTS))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {name: make(base / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def answerers(folders):
    return {name: load_answerer(f"hf:{folder}", FLOAT32) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def direct(folders):
    """(network, processor) as transformers loads them."""
    with capture_warnings():
        return {
            name: (
                getattr(transformers, NETWORKS[name]).from_pretrained(folder).eval(),
                transformers.AutoProcessor.from_pretrained(folder, backend="pil"),
            )
            for name, folder in folders.items()
            if name in NETWORKS
        }


def requests_of(answerer, task, language="en", texts=TEXTS, pictures=PICTURES):
    return [
        Request(
            task,
            language,
            answerer.preprocess("image", pixels),
            None if task == "caption" else text,
        )
        for pixels, text in zip(pictures, texts, strict=True)
    ]


def generated_directly(model, processor, name, task, language, text, pixels, beams):
    """(the answer, the geometric mean of its tokens' probabilities) of one request."""
    image = Image.fromarray(pixels)
    prompt = {"caption": None, "ask": text}.get(task)
    if name == "blip2" and task == "ask":
        prompt = f"Question: {text} Answer:"
    if name in ("llava", "idefics"):
        words = CHAT_PROMPTS[task, language].replace("{text}", text)
        prompt = f"user: <image>{words}</s>assistant: "
    words = {} if prompt is None else {"text": [prompt]}
    inputs = processor(images=[image], return_tensors="pt", **words)
    made = model.generate(
        **inputs,
        max_new_tokens=LENGTH,
        num_beams=beams,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    part = getattr(model, "text_decoder", None) or getattr(model, "language_model", model)
    steps = part.compute_transition_scores(
        made.sequences, made.scores, getattr(made, "beam_indices", None), normalize_logits=True
    )[0]
    new = made.sequences[0, len(made.sequences[0]) - len(steps) :]
    (ends,) = torch.where(new == 2)
    steps = steps[: ends[0] + 1] if len(ends) else steps
    answer = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return answer, steps.mean().exp().item()


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize(("name", "task", "language"), GENERATED)
def test_answers_are_those_of_transformers(answerers, direct, name, task, language, settings):
    answerer = answerers[name]
    replies = answerer.answer(requests_of(answerer, task, language), settings)
    for reply, text, pixels in zip(replies, TEXTS, PICTURES, strict=True):
        answer, probability = generated_directly(
            *direct[name], name, task, language, text, pixels, settings.beams
        )
        assert reply.text == answer
        assert reply.confidence == pytest.approx(probability, rel=1e-3)
        assert reply.truncated == 0
    assert len({reply.text for reply in replies}) > 1


def test_some_answers_end_before_others(answerers):
    """So that what is said above of probabilities is said of ends too."""
    for name, settings in (("caption", GREEDY), ("caption", BEAMS)):
        requests = requests_of(answerers[name], "caption")
        inputs = {"pixel_values": torch.from_numpy(np.stack([each.image for each in requests]))}
        tokens = answerers[name]._generator(inputs, settings).tokens
        assert len(set((tokens == 2).int().argmax(1).tolist())) > 1, (name, tokens)


@pytest.mark.parametrize(
    ("name", "task", "settings"),
    [
        ("caption", "caption", GREEDY),
        ("questions", "ask", BEAMS),
        ("vilt", "ask", GREEDY),
        ("blip2", "ask", GREEDY),
        ("llava", "ask", BEAMS),
        ("idefics", "ask", GREEDY),
    ],
)
def test_a_batch_answers_as_each_request_alone(answerers, name, task, settings):
    answerer = answerers[name]
    requests = requests_of(answerer, task)
    for request, reply in zip(requests, answerer.answer(requests, settings), strict=True):
        (alone,) = answerer.answer([request], settings)
        assert reply.text == alone.text
        assert reply.confidence == pytest.approx(alone.confidence, rel=1e-4)


def test_vilt_gives_its_labels_with_their_probabilities(folders, answerers):
    with capture_warnings():
        model = transformers.ViltForQuestionAnswering.from_pretrained(folders["vilt"]).eval()
        processor = transformers.AutoProcessor.from_pretrained(folders["vilt"], backend="pil")
    replies = answerers["vilt"].answer(requests_of(answerers["vilt"], "ask"), GREEDY)
    for reply, text, pixels in zip(replies, TEXTS, PICTURES, strict=True):
        with torch.inference_mode():
            inputs = processor(Image.fromarray(pixels), text, return_tensors="pt")
            wanted = model(**inputs).logits[0].sigmoid()
        assert list(reply.scores.values()) == sorted(reply.scores.values(), reverse=True)
        for number, label in enumerate(LABELS):
            assert reply.scores[label] == pytest.approx(wanted[number].item(), rel=1e-4)
        assert reply.text == LABELS[wanted.argmax()]
        assert reply.confidence == reply.scores[reply.text]
    assert len({reply.text for reply in replies}) > 1


def test_requests_of_several_tasks_go_together(answerers):
    answerer = answerers["llava"]
    requests = [
        *requests_of(answerer, "caption", "zh"),
        *requests_of(answerer, "translate", "en"),
    ]
    apart = [answerer.answer([request], GREEDY)[0].text for request in requests]
    assert [reply.text for reply in answerer.answer(requests, GREEDY)] == apart


def test_a_batch_whose_logits_would_be_too_many_is_cut(answerers, monkeypatch):
    answerer = answerers["caption"]
    requests = requests_of(answerer, "caption")
    whole = answerer.answer(requests, BEAMS)
    vocabulary = answerer._network.config.text_config.vocab_size
    row = 4 * LENGTH * 3 * vocabulary
    monkeypatch.setattr(huggingface_generate, "LOGITS_BYTES", 2 * row)
    assert answerer._most_rows(BEAMS) == 2
    assert [reply.text for reply in answerer.answer(requests, BEAMS)] == [
        reply.text for reply in whole
    ]


def test_sampled_answers_depend_on_the_seed_alone(answerers):
    answerer = answerers["caption"]
    requests = requests_of(answerer, "caption")

    def sampled(some, seed, **more):
        settings = GenerateSettings(max_tokens=LENGTH, sampling=Sampling(seed=seed, **more))
        return [reply.text for reply in answerer.answer(some, settings)]

    state = torch.random.get_rng_state()
    first = sampled(requests, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == sampled(requests, 1) and first[2:] == sampled(requests[2:], 1)
    assert first != sampled(requests, 2)
    greedy = [reply.text for reply in answerer.answer(requests, GREEDY)]
    assert sampled(requests, 1, top_p=1e-6) == greedy != first


@pytest.mark.parametrize(
    ("name", "most"), [("questions", 24 - 2), ("vilt", 24 - 2), ("llava", None), ("blip2", None)]
)
def test_a_text_that_is_too_long_is_cut_and_says_by_how_many_tokens(answerers, name, most):
    answerer = answerers[name]
    count = 700 if most is None else 30  # words or letters, a token each
    text = "x" * count if most is None else " ".join(["boat"] * count)
    short, long = requests_of(answerer, "ask", texts=["what", text], pictures=PICTURES[:1] * 2)
    replies = answerer.answer([short, long], GREEDY)
    assert replies[0].truncated == 0 < replies[1].truncated
    if most is not None:
        assert replies[1].truncated == count - most
    kept = text[: (count - replies[1].truncated) * (1 if most is None else len("boat "))]
    (same,) = answerer.answer(
        requests_of(answerer, "ask", texts=[kept], pictures=PICTURES[:1]), GREEDY
    )
    assert (same.text, same.truncated) == (replies[1].text, 0)
    one_more = kept + ("x" if most is None else " boat")
    (cut,) = answerer.answer(
        requests_of(answerer, "ask", texts=[one_more], pictures=PICTURES[:1]), GREEDY
    )
    assert (cut.text, cut.truncated) == (same.text, 1)


@pytest.fixture(scope="module")
def narrow(folders, tmp_path_factory):
    """A LLaVA of POSITIONS positions, and how many tokens its prompt of "what" has."""
    folder = shutil.copytree(folders["llava"], tmp_path_factory.mktemp("narrow") / "model")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["max_position_embeddings"] = POSITIONS
    path.write_text(json.dumps(config))
    answerer = load_answerer(f"hf:{folder}", FLOAT32)
    request = requests_of(answerer, "ask", texts=["what"], pictures=PICTURES[:1])
    return answerer, answerer.inputs(request)["input_ids"].shape[1]


def test_answers_end_where_the_positions_do_and_no_prompt_is_cut_for_them(narrow):
    answerer, length = narrow
    texts = ["what", "what is it"]
    requests = requests_of(answerer, "ask", texts=texts, pictures=PICTURES[:1] * 2)
    long = answerer.answer(requests, GenerateSettings(max_tokens=10 * POSITIONS))
    for more, request, reply in zip((0, 6), requests, long, strict=True):
        room = GenerateSettings(max_tokens=POSITIONS - length - more)
        assert answerer.answer([request], room) == [reply] and reply.truncated == 0


def test_a_request_for_whose_text_no_room_is_left_is_a_fault(narrow):
    answerer, _ = narrow
    (request,) = requests_of(answerer, "sentiment", texts=["what"], pictures=PICTURES[:1])
    (fault,) = answer_batch(answerer, [request], GREEDY)
    rest = answerer.inputs([replace(request, text="")])["input_ids"].shape[1]
    assert isinstance(fault, Fault)
    assert f"{rest} tokens without the text, of {POSITIONS - LENGTH}" in str(fault)


def test_answers_of_blip_end_where_the_positions_of_its_decoder_do(answerers, monkeypatch):
    answerer = answerers["questions"]
    config = answerer._network.config.text_config
    monkeypatch.setattr(config, "sep_token_id", config.vocab_size)  # so that no answer ends before
    requests = requests_of(answerer, "ask")
    texts = [
        [reply.text for reply in answerer.answer(requests, GenerateSettings(max_tokens=tokens))]
        for tokens in (24 - 1, 24 + 100)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_models_that_chat_are_offered_every_label_of_sentiment(language):
    prompt = CHAT_PROMPTS["sentiment", language]
    assert all(words[language] in prompt for words in SENTIMENTS.values())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("llava", "a <image> and </s>", "a < image> and < /s>"),
        ("questions", "red [SEP] boat", "red [ SEP] boat"),
    ],
)
def test_a_text_that_reads_like_a_control_token_is_words(answerers, name, text, words):
    answerer = answerers[name]
    requests = requests_of(answerer, "ask", texts=[text, words], pictures=PICTURES[:1] * 2)
    first, second = answerer.answer(requests, GREEDY)
    assert first == second
    surrogate = requests_of(answerer, "ask", texts=["a \ud83d boat"], pictures=PICTURES[:1])
    assert len(answerer.answer(surrogate, GREEDY)) == 1


def test_tasks_and_languages_are_those_of_the_model(answerers):
    tasks = {name: set(answerer.tasks) for name, answerer in answerers.items()}
    chat = {"caption", "ask", "translate", "sentiment"}
    assert tasks == {
        "caption": {"caption"},
        "questions": {"ask"},
        "vilt": {"ask"},
        "blip2": {"caption", "ask"},
        "llava": chat,
        "idefics": chat,
    }
    with pytest.raises(UsageError, match="one that can ask, found one that can caption"):
        answerers["caption"].answer([Request("ask", text="what")], GREEDY)
    with pytest.raises(UsageError, match="in zh, found one for en"):
        answerers["blip2"].answer([Request("caption", "zh")], GREEDY)


def test_what_the_model_says_of_penalties_counts_and_is_in_the_fingerprint(folders, tmp_path):
    folder = shutil.copytree(folders["llava"], tmp_path / "model")
    before = load_answerer(f"hf:{folder}", FLOAT32)
    path = folder / "generation_config.json"
    saved = {"repetition_penalty": 50.0, "do_sample": True, "top_k": 3, "num_beams": 2}
    path.write_text(json.dumps({**json.loads(path.read_text()), **saved}))
    after = load_answerer(f"hf:{folder}", FLOAT32)
    assert after.fingerprint != before.fingerprint
    requests = requests_of(before, "caption")
    first, second = (each.answer(requests, GREEDY) for each in (before, after))
    assert [reply.text for reply in first] != [reply.text for reply in second]
    assert [reply.text for reply in after.answer(requests, GREEDY)] == [
        reply.text for reply in second
    ]


def test_bfloat16_answers_with_the_same_fingerprint(folders, answerers):
    for name, answerer in answerers.items():
        half = load_answerer(f"hf:{folders[name]}", EncoderSettings("bfloat16", "cpu"))
        assert (half.precision, half.fingerprint) == ("bfloat16", answerer.fingerprint)
        task = "ask" if "ask" in half.tasks else "caption"
        for reply in half.answer(requests_of(half, task), GREEDY):
            assert 0 < reply.confidence <= 1


def test_folders_that_cannot_answer_are_one_line(folders, tmp_path):
    plain = llava_folder(tmp_path / "plain", template=None)
    with pytest.raises(EncoderError, match=r"expected a chat template .*'llava', found none"):
        load_answerer(f"hf:{plain}", FLOAT32)
    clip = clip_folder(
        tmp_path / "clip",
        side=32,
        tower={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        vision={"patch_size": 8},
    )
    with pytest.raises(EncoderError, match="found type 'clip', architecture CLIPModel"):
        load_answerer(f"hf:{clip}", FLOAT32)
    old = shutil.copytree(folders["blip2"], tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "image_token_index": None}))
    with pytest.raises(EncoderError, match=r"expected image_token_index in config.json"):
        load_answerer(f"hf:{old}", FLOAT32)
    with pytest.raises(
        EncoderError, match=r"^model hf:/none: expected a model folder, found no such"
    ):
        load_answerer("hf:/none", FLOAT32)
    (old / "config.json").write_text("{")
    with pytest.raises(
        EncoderError, match=r"^model hf:.*: expected a config.json that can be loaded"
    ):
        load_answerer(f"hf:{old}", FLOAT32)


def test_the_prompts_are_documented():
    page = (ROOT / "docs/operations.md").read_text()
    for prompt in [*CHAT_PROMPTS.values(), BLIP2_QUESTION]:
        for line in filter(None, prompt.replace("{text}", "TEXT").splitlines()):
            assert f"`{line}`" in page
