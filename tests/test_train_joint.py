"""`chiasm train joint`: on top of a frozen encoder, and with towers of its own."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from array_encoder import ArrayEncoder
from drawn_shards import drawn_shard
from encoding import encode_images, encode_joint, encode_texts, match_rows
from PIL import Image
from random_models import clip_folder
from tars import json_of, write_tar

from chiasm.jobs.cli.train_joint import _print_report, format_report, joint_settings
from chiasm.jobs.config import compose
from chiasm.pipeline.encoders import (
    ENCODERS,
    BaseEncoder,
    Encoded,
    EncoderSettings,
    GenerateSettings,
    Input,
    Request,
    answer_batch,
    language_of,
    load_answerer,
    load_encoder,
    unit,
)
from chiasm.pipeline.errors import ChiasmError, EncoderError, UsageError
from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ImageConfig,
    ImageTokensConfig,
    ModelConfig,
    TextConfig,
)
from chiasm.pipeline.model.frozen_joint import (
    FrozenJointConfig,
    FrozenJointNetwork,
    load_frozen_joint,
)
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.training.joint.build import (
    frozen_stages,
    own_config,
    own_network,
    require_image_and_text,
)
from chiasm.pipeline.training.joint.data import (
    HELD_OUT,
    Samples,
    equal_to,
    pair_batch,
    rows_of_step,
)
from chiasm.pipeline.training.joint.evaluate import gallery_of, matching_figures
from chiasm.pipeline.training.joint.json_tasks import read_examples
from chiasm.pipeline.training.joint.loop import train_joint
from chiasm.pipeline.training.joint.settings import JointSettings
from chiasm.pipeline.training.joint.trainer import STATE, Training
from chiasm.pipeline.training.log import read_log
from chiasm.pipeline.training.two_tower.held_out import tenth_of

CPU = EncoderSettings(device="cpu", precision="float32")
SMALL = FusionConfig(fusion="concat", width=32, depth=1, heads=2)
FROZEN = JointSettings(
    encoder="halves:", frozen_steps=120, frozen_batch=64, fusion=SMALL, device=CPU, ema=0.9
)
OWN = JointSettings(
    steps=2, fusion_steps=2, decoder_steps=2, batch=8, decoder_batch=4, fusion=SMALL, device=CPU,
    checkpoint_every=2, log_every=1, evaluate_every=2,
    model=ModelConfig(
        image=ImageConfig(side=24, stem=(8, 16), width=32, depth=1, heads=2),
        text=TextConfig(vocabulary=600, context=32, width=32, depth=1, heads=2),
        dim=16,
        decoder=DecoderConfig(width=32, depth=1, heads=2, context=24),
    ),
)  # fmt: skip
KINDS = 20  # of each half


def unseen(record: dict[str, Any]) -> None:
    """Progress that no test reads."""


class Halves(BaseEncoder):
    """A picture is a colour (a, b, c), whose vector says a alone; a text says b, or a and b. What
    both together are about lies elsewhere in the space than the mean of picture and text: a query
    "a b" is found by what a fusion learns of pairs, and by no mean."""

    name, precision, device, fingerprint = "halves", "float32", "cpu", "h" * 32

    def __init__(self) -> None:
        self.preprocessing: dict[str, Any] = {}
        self.modalities = {"image": Input(side=1), "text": Input()}
        self.dims = dict.fromkeys(("image", "text", "joint"), 64)
        rng = np.random.default_rng(0)
        self.of_a, self.of_b, self.then_a, self.then_b = rng.normal(size=(4, KINDS, 64))

    def preprocess(self, modality: str, raw: Any) -> Any:
        return raw if modality == "text" else raw[0, 0, :1] % KINDS

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        if modality == "image":
            return Encoded(unit(self.of_a[np.array(items).reshape(-1)]))
        texts = [[int(word) for word in text.split() if word.isdigit()] or [0] for text in items]
        return Encoded(
            unit(
                np.stack(
                    [
                        self.of_b[text[0]]
                        if len(text) == 1
                        else self.then_a[text[0]] + self.then_b[text[1]]
                        for text in texts
                    ]
                )
            )
        )


@pytest.fixture(scope="module", autouse=True)
def _halves_are_known():
    ENCODERS["halves"] = lambda model, settings: Halves()
    yield
    del ENCODERS["halves"]


def png(a: int, b: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (1, 1), (a, b, 0)).save(out, "PNG")
    return out.getvalue()


def halves_shard(path, captions=2):
    pairs = itertools.product(range(KINDS), range(KINDS))
    return write_tar(
        path,
        {
            f"{a:02d}{b:02d}": {
                "png": png(a, b),
                "json": json_of([str(b), f"{a} {b}"][:captions]),
            }
            for a, b in pairs
        },
    )


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A training on top of a frozen encoder: its folder, shards and report."""
    root = tmp_path_factory.mktemp("frozen")
    shards = [halves_shard(root / "a.tar")]
    return root / "out", shards, train_joint(FROZEN, shards, root / "out", unseen)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A shard of drawn scenes with tasks."""
    return [drawn_shard(tmp_path_factory.mktemp("scenes") / "s.tar", 110, tasks=True)]


@pytest.fixture(scope="module")
def own(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "out"
    return folder, train_joint(OWN, scenes, folder, unseen)


def test_what_is_learned_of_pairs_beats_the_best_mean_and_ships(frozen):
    folder, _, report = frozen
    assert report["joint_ships"] and report["shrink"] > 0
    assert report["joint"]["r1"] > report["mean"]["r1"] + 0.4
    assert report["held_out"] + report["trained_on"] < report["pairs"] == 400
    assert report == json.loads((folder / "report.json").read_text())
    assert (folder / "curves.png").stat().st_size > 1000
    lines = format_report(report)
    assert lines[-1] == "the learned fusion beats the best weighted mean and ships"
    assert f"learned fusion                R@1 {report['joint']['r1']:.3f}" in "\n".join(lines)


def test_vectors_are_cut_and_not_those_of_the_encoder_below(frozen):
    folder, _, _ = frozen
    whole, short = (load_encoder(f"joint:{folder}", one) for one in (CPU, replace(CPU, dims=4)))
    pixels, texts = [np.array([n]) for n in (3, 7)], ["4", "3 9"]
    expected = encode_joint(whole, pixels, texts)[:, :4]
    found = encode_joint(short, pixels, texts)
    np.testing.assert_allclose(found, unit(expected), atol=1e-6)


def test_the_folder_opens_as_an_encoder_with_the_vectors_of_the_one_below(frozen):
    folder, _, _ = frozen
    encoder, below = load_encoder(f"joint:{folder}", CPU), Halves()
    pixels, texts = [np.array([n]) for n in (3, 7, 7)], ["4", "1", "3 9"]
    np.testing.assert_array_equal(encode_images(encoder, pixels), encode_images(below, pixels))
    np.testing.assert_array_equal(encode_texts(encoder, texts), encode_texts(below, texts))
    joint = encode_joint(encoder, pixels, texts)
    np.testing.assert_allclose(np.linalg.norm(joint, axis=1), 1, atol=1e-5)
    network = load_frozen_joint(folder)
    with torch.no_grad():
        image, text = (
            network.image_modality(torch.from_numpy(encode(below, items)))
            for encode, items in ((encode_images, pixels), (encode_texts, texts))
        )
        np.testing.assert_allclose(network.fuse(text, image).joint.numpy(), joint, atol=1e-6)
        # Matching is a weighted sum of cosine and learned logit; weights chosen are none below 0.
        cosine = (text.vector * image.vector).sum(1) * network.match_scale
        learned, bias = network.match_rest
        logits = learned * network.matching(network.fuse(text, image)).logit + cosine + bias
        assert learned >= 0 and network.match_scale >= 0
    np.testing.assert_allclose(match_rows(encoder, pixels, texts), logits.numpy(), atol=1e-4)
    # A row does not depend on its batch.
    np.testing.assert_allclose(
        encode_joint(encoder, pixels[1:2], texts[1:2]), joint[1:2], atol=1e-6
    )


def test_the_encoder_below_may_be_one_whose_rows_were_made_in_an_earlier_way(frozen, monkeypatch):
    folder, _, _ = frozen
    before = load_encoder(f"joint:{folder}", CPU)
    assert before.earlier_fingerprints == {}
    below = Halves()
    below.fingerprint = "n" * 32
    monkeypatch.setitem(ENCODERS, "halves", lambda model, settings: below)
    with pytest.raises(EncoderError, match="found another one of that name"):
        load_encoder(f"joint:{folder}", CPU)
    below.earlier_fingerprints = {Halves.fingerprint: "prompts"}
    now = load_encoder(f"joint:{folder}", CPU)
    assert now.fingerprint != before.fingerprint
    assert now.earlier_fingerprints == {before.fingerprint: "prompts"}


def test_a_folder_of_another_kind_is_refused_with_the_name_that_opens_it(frozen, own):
    for wrong, right in ((f"pocket:{frozen[0]}", "joint"), (f"joint:{own[0]}", "pocket")):
        folder = wrong.partition(":")[2]
        with pytest.raises(EncoderError, match=f"load it as an encoder: {right}:{folder}"):
            load_encoder(wrong, CPU)


def test_a_mean_that_is_not_beaten_ships(frozen, tmp_path):
    """One step of training learns nothing worth a standard error."""
    _, shards, _ = frozen
    report = train_joint(replace(FROZEN, frozen_steps=1), shards, tmp_path / "out", unseen)
    assert not report["joint_ships"]
    encoder, below = load_encoder(f"joint:{tmp_path / 'out'}", CPU), Halves()
    image, text = encode_images(below, [np.array([3])]), encode_texts(below, ["4"])
    weight = min(max(report["text_weight"], 1e-3), 1 - 1e-3)  # the least share of a modality
    expected = unit((1 - weight) * image + weight * text)
    np.testing.assert_allclose(encode_joint(encoder, [np.array([3])], ["4"]), expected, atol=2e-3)
    assert "weighted mean" in encoder.preprocessing["joint"]
    assert format_report(report)[-1].endswith("the mean ships")


def test_one_caption_a_picture_has_no_joint_vector_to_learn(tmp_path):
    report = train_joint(
        replace(FROZEN, frozen_steps=2), [halves_shard(tmp_path / "a.tar", captions=1)],
        tmp_path / "out", unseen,
    )  # fmt: skip
    assert report["queries"] == 0 and not report["joint_ships"] and "joint" not in report
    assert "one caption a picture" in format_report(report)[-1]
    network = load_frozen_joint(tmp_path / "out")
    assert network.fusion.is_mean and network.fusion.mean_weights.tolist() == [0.5, 0.5]


class Killed(Exception):
    """What ends a training at one of its reports."""


def killed_at(number: int):
    """A report that ends the training when it is called for the `number`-th time."""
    calls = itertools.count()

    def report(record: dict[str, Any]) -> None:
        if next(calls) == number:
            raise Killed

    return report


@pytest.mark.parametrize("kind", ["frozen", "own"])
def test_killed_anywhere_and_run_again_it_ends_with_the_same_bytes(kind, own, scenes, tmp_path):
    settings, shards, whole = OWN, scenes, own[0]
    if kind == "frozen":
        settings = replace(FROZEN, frozen_steps=5, frozen_batch=8, checkpoint_every=2, log_every=1)
        shards, whole = [halves_shard(tmp_path / "a.tar")], tmp_path / "whole"
        train_joint(settings, shards, whole, unseen)
    # Reports: the shard, each step, and the last. Every other step has a checkpoint, after its
    # report: killed at the end of a stage, that step and what follows it are done again.
    for number in (0, 2, 5) if kind == "frozen" else (4,):
        folder = tmp_path / f"killed-{number}"
        with pytest.raises(Killed):
            train_joint(settings, shards, folder, killed_at(number))
        again = train_joint(settings, shards, folder, unseen)
        name = "model.safetensors"
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), number
        figures = json.loads((whole / "report.json").read_text())
        assert {**again, "seconds_of_this_run": 0} == {**figures, "seconds_of_this_run": 0}


def test_other_settings_in_the_same_folder_are_refused(frozen, tmp_path):
    made, shards, _ = frozen
    folder = shutil.copytree(made, tmp_path / "copy")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"learn\.seed 0, as it began, found learn\.seed 1"):
        train_joint(replace(FROZEN, seed=1), shards, folder, unseen)
    train_joint(FROZEN, shards, folder, unseen)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_step_that_is_not_finite_ends_it_before_the_checkpoint(tmp_path):
    shards = [halves_shard(tmp_path / "a.tar")]
    broken = replace(FROZEN, learning_rate=1e38, checkpoint_every=1)
    with pytest.raises(ChiasmError, match="expected finite losses and gradients"):
        train_joint(broken, shards, tmp_path / "out", unseen)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_in_no_checkpoint_and_no_folder(tmp_path):
    network = FrozenJointNetwork(FrozenJointConfig("halves:", "h" * 32, 64, SMALL))
    training = Training(network, frozen_stages(FROZEN), FROZEN)
    training.save(tmp_path)
    before = (tmp_path / STATE).read_bytes()
    training.ema.tensors["fusion.residual.weight"][0, 0] = float("nan")
    line = (
        r"state of a training after step 0: expected finite tensors, found others in average\.fus"
        r"ion\.residual\.weight; the last checkpoint is as it was: train in another folder with a l"
    )
    with pytest.raises(ChiasmError, match=line):
        training.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [STATE]
    assert (tmp_path / STATE).read_bytes() == before


def test_a_training_whose_weights_become_infinite_writes_neither_state_nor_model(tmp_path):
    shards = [halves_shard(tmp_path / "a.tar")]
    broken = replace(FROZEN, learning_rate=float("inf"), checkpoint_every=1)
    with pytest.raises(ChiasmError, match="expected finite tensors, found others in average"):
        train_joint(broken, shards, tmp_path / "out", unseen)
    for name in (STATE, "model.safetensors", "config.json"):
        assert not (tmp_path / "out" / name).exists(), name


def test_a_clip_below_and_another_one_in_its_place(tmp_path):
    """Through transformers: a tiny random CLIP saved to disk."""
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = {"side": 16, "width": 16, "tower": tower, "vision": {"patch_size": 8}}
    clip = clip_folder(tmp_path / "clip", **model)
    shards = [drawn_shard(tmp_path / "a.tar", 90)]
    settings = replace(FROZEN, encoder=f"hf:{clip}", frozen_steps=3, frozen_batch=8)
    train_joint(settings, shards, tmp_path / "out", unseen)
    encoder, below = (
        load_encoder(name, CPU) for name in (f"joint:{tmp_path / 'out'}", f"hf:{clip}")
    )
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 255, (3, 20, 20, 3), dtype=np.uint8)
    pixels = [encoder.preprocess("image", item) for item in raw]
    np.testing.assert_array_equal(encode_images(encoder, pixels), encode_images(below, pixels))
    texts = ["a red boat", "the sea"]
    np.testing.assert_array_equal(encode_texts(encoder, texts), encode_texts(below, texts))
    assert encoder.fingerprint != below.fingerprint
    shutil.rmtree(clip)
    clip_folder(clip, seed=1, **model)
    with pytest.raises(EncoderError, match="that it was trained on, found another one"):
        load_encoder(f"joint:{tmp_path / 'out'}", CPU)


def test_towers_of_its_own_open_as_pocket_and_answer(own):
    folder, report = own
    assert report["tasks"] == ["caption", "ask", "translate", "sentiment"]
    stages = [record["stage"] for record in read_log(folder)]
    assert stages == ["towers", "towers", "fusion", "fusion", "decoder", "decoder"]
    encoder = load_encoder(f"pocket:{folder}", CPU)
    pixels = [encoder.preprocess("image", np.zeros((30, 30, 3), np.uint8))] * 2
    assert match_rows(encoder, pixels, ["a boat", "two"]).shape == (2,)
    assert encode_joint(encoder, pixels, ["a boat", "two"]).shape == (2, 16)
    answerer = load_answerer(f"pocket:{folder}", CPU)
    request = Request("ask", "en", pixels[0], "How many?")
    (reply,) = answer_batch(answerer, [request], GenerateSettings(max_tokens=3))
    assert isinstance(reply.text, str)
    # Of json: questions and a sentiment in English, translations into Chinese.
    learned = {"caption": ("en", "zh"), "ask": ("en",), "translate": ("zh",), "sentiment": ("en",)}
    assert answerer.tasks == learned
    with pytest.raises(UsageError, match="expected one that can ask in zh, found one for en"):
        answer_batch(answerer, [Request("ask", "zh", pixels[0], "什么？")], GenerateSettings())


def test_towers_begin_as_those_of_a_model_folder(own, scenes, tmp_path):
    folder, _ = own
    settings = replace(OWN, start=folder, steps=1, fusion_steps=1, decoder_steps=0, fusion=None)
    settings = replace(settings, learning_rate=1e-9)
    said = []
    train_joint(settings, scenes, tmp_path / "out", lambda record: said.append(record))
    assert {"message": "nothing teaches the decoder of --start here: it is left out"} in said
    before, after = (load_encoder(f"pocket:{item}", CPU) for item in (folder, tmp_path / "out"))
    texts = ["a red boat", "一只小船"]
    np.testing.assert_allclose(encode_texts(after, texts), encode_texts(before, texts), atol=2e-3)
    assert json.loads((tmp_path / "out" / "config.json").read_text()).get("decoder") is None


def test_towers_learn_to_find(tmp_path):
    """Eight colours by their names: far above chance among pictures never trained on."""
    words = ["red", "blue", "lime", "black", "white", "pink", "gold", "cyan"]
    samples = {}
    for number in range(240):
        colour = words[number % len(words)]
        picture = Image.new("RGB", (24, 24), colour)
        picture.putpixel((number % 24, number // 24), (number, 9, 9))  # no two alike
        out = io.BytesIO()
        picture.save(out, "PNG")
        samples[f"{number:03d}"] = {"png": out.getvalue(), "txt": f"it is {colour}".encode()}
    shards = [write_tar(tmp_path / "c.tar", samples)]
    report = train_joint(
        replace(OWN, steps=40, batch=32, fusion_steps=1, decoder_steps=0, log_every=10),
        shards, tmp_path / "out", unseen,
    )  # fmt: skip
    log = [record for record in read_log(tmp_path / "out") if record["stage"] == "towers"]
    assert log[-1]["contrast"] < 0.5 * log[0]["contrast"]
    assert report["text_to_image"]["r10"] > 0.9


def test_batches_are_those_of_seed_and_step(frozen):
    folder, _, _ = frozen
    samples = Samples(sorted((folder / "samples").glob("*.safetensors")))
    rows = samples.trained_on
    # By the bytes of pictures: two shares in ten are never trained on.
    digests = [
        hashlib.sha256(png(a, b)).hexdigest()
        for a, b in itertools.product(range(KINDS), range(KINDS))
    ]
    tenths = np.array([int(digest[:8], 16) % 10 for digest in digests])
    assert rows.tolist() == np.flatnonzero(tenths > 1).tolist()
    epoch = [rows_of_step(rows, 32, step, 0) for step in range(len(rows) // 32)]
    found = np.concatenate(epoch)
    assert len(np.unique(found)) == len(found) and set(found) <= set(rows)
    batch, again = (pair_batch(samples, epoch[1], 1, 0) for _ in range(2))
    torch.testing.assert_close(batch.caption, again.caption, rtol=0, atol=0)
    assert (batch.caption != batch.other).any(1).all() and batch.several.all()
    for i, j in itertools.product(range(32), range(32)):  # by comparing texts
        for same, texts in ((batch.same, batch.caption), (batch.other_same, batch.other)):
            assert same[i, j] == (i == j or bool((texts[i] == texts[j]).all()))


def test_logits_that_are_nan_are_wrong_and_find_nothing(frozen):
    folder, _, _ = frozen
    samples = Samples(sorted((folder / "samples").glob("*.safetensors")))
    network = load_frozen_joint(folder)
    gallery = gallery_of(network, samples, torch.device("cpu"))
    sound = matching_figures(network, gallery, 0)
    assert sound["accuracy"] > 0 and sound["r1_before"] > 0
    with torch.no_grad():
        network.add_match_bias(float("nan"))
    broken = matching_figures(network, gallery, 0)
    assert broken["r1_before"] == sound["r1_before"]
    assert broken["accuracy"] == broken["r1_after"] == 0


def test_entries_of_json_become_examples_and_bad_ones_a_line():
    fields = {
        "questions": [
            {"question": "什么颜色？", "answer": "红色"},
            {"question": "what?"},
            "what?",
        ],
        "translations": [
            {"source": "a crane", "target": "鹤", "to": "zh"},
            {"source": "鹤", "target": "a crane"},
            {"source": "a crane", "target": "un grue", "to": "fr"},
        ],
        "sentiment": {"text": "What a day!", "label": ""},
    }
    examples, bad = read_examples(json.dumps(fields))
    assert [(e.task, e.language, e.target) for e in examples] == [
        ("ask", "zh", "红色"), ("translate", "zh", "鹤"), ("translate", "en", "a crane"),
    ]  # fmt: skip
    assert bad == [
        "questions[1]: expected a text as answer, found none",
        "questions[2]: expected an object with question and answer, found str",
        "translations[2]: expected en or zh as to, found 'fr'",
        "sentiment: expected a text as label, found ''",
    ]
    assert read_examples(None) == ([], []) == read_examples('{"questions": null}')


def test_bad_entries_are_said_and_counted_and_their_samples_stay(scenes, tmp_path):
    members = {
        f"{n:03d}": {
            "png": png(n % 20, n // 20),
            "json": json_of(["a", f"b {n % 3}"], questions=[n]),
        }
        for n in range(120)
    }
    shards = [write_tar(tmp_path / "a.tar", members)]
    said: list[str] = []
    settings = replace(OWN, steps=1, fusion_steps=1, decoder_steps=0)
    report = train_joint(
        settings, shards, tmp_path / "out", lambda record: said.append(record.get("message", ""))
    )
    assert (report["bad_entries"], report["pairs"]) == (120, 120)
    assert said[0].endswith(
        "a.tar, 000: questions[0]: expected an object with question and answer, found int; left out"
    )
    assert said[5].endswith("a.tar: 115 more such entries left out")


def test_what_cannot_be_trained_is_refused_in_one_line(frozen, chiasm, tmp_path):
    _, shards, _ = frozen
    few = [write_tar(tmp_path / "few.tar", {"a": {"png": png(1, 1), "txt": b"1"}})]
    with pytest.raises(UsageError, match="20 or more pairs to train on, 4 pictures to choose by"):
        train_joint(FROZEN, few, tmp_path / "out", unseen)
    none = [write_tar(tmp_path / "none.tar", {"a": {"png": png(1, 1)}})]
    with pytest.raises(UsageError, match="a caption, found none; dropped were 1 no_pair"):
        train_joint(FROZEN, none, tmp_path / "none", unseen)
    (tmp_path / "one").mkdir()
    one = [
        write_tar(
            tmp_path / "one.tar", {f"{n:03d}": {"png": png(n, 1), "txt": b"1"} for n in range(150)}
        )
    ]
    with pytest.raises(UsageError, match="pictures with different captions, found one caption"):
        train_joint(FROZEN, one, tmp_path / "one", unseen)
    train_joint(
        replace(FROZEN, frozen_steps=2), shards, tmp_path / "one", unseen
    )  # it may begin there
    with pytest.raises(UsageError, match="in one space, found one with vectors array of 4, text"):
        require_image_and_text(ArrayEncoder())
    settings = compose("laptop", ["train.steps=3"])
    with pytest.raises(UsageError, match="only fusion and matching learn, found both; leave out"):
        joint_settings("pocket", None, settings)
    with pytest.raises(UsageError, match="--fusion-steps 0: expected 1 or more"):
        joint_settings(None, None, compose("laptop", ["train.fusion_steps=0"]))
    command = ("train", "joint", shards[0].url.removeprefix("file://"), "--to", tmp_path / "to")
    for more, expected in (
        (("--towers", "magic:x"), "encoder 'magic:x': expected one of pocket"),
        (("--set", "train.processes=2"), "train.processes"),
    ):
        ran = chiasm(*command, *more)
        assert ran.returncode in (1, 2) and expected in ran.stderr, ran.stderr
        assert ran.stderr.startswith("chiasm: ") and not (tmp_path / "to").exists()


def test_at_the_prompt(chiasm, tmp_path):
    shard = drawn_shard(tmp_path / "a.tar", 90)
    to, path = tmp_path / "to", shard.url.removeprefix("file://")
    ran = chiasm(
        "train", "joint", path, "--towers", "pocket", "--fusion-steps", 2, "--to", to,
        "--device", "cpu", "--precision", "float32", "--set", "train.batch=8",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"{to}: trained; use it with --encoder joint:{to}"
    assert "fusion  step 2 of 2  loss " in ran.stderr
    assert load_encoder(f"joint:{to}", CPU).dims["joint"] == 256


def question_samples():
    """Pictures, each with captions of which one is too long for a decoder of 24 tokens, and with
    questions in either language: three whose answer is in their words, one that nobody can know."""
    rng = random.Random(0)
    for number in range(120):
        questions = [("Is it so?", "yes"), ("Is it not?", "no"), ("这是吗？", "是")]
        questions.append(("Who?", rng.choice(["he", "she"])))
        kind = number % 7
        yield png(number, 1), [f"a square {kind}", " ".join(["long"] * 60) + f" {kind}"], questions


def question_shard(path):
    members = {}
    for number, (picture, captions, pairs) in enumerate(question_samples()):
        questions = [{"question": question, "answer": answer} for question, answer in pairs]
        fields = json.loads(json_of(captions)) | {"questions": questions}
        members[f"{number:04d}"] = {"png": picture, "json": json.dumps(fields).encode()}
    return write_tar(path, members)


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """A decoder that has learned to answer by the question alone: its folder and report."""
    root = tmp_path_factory.mktemp("answering")
    shard = question_shard(root / "a.tar")
    settings = replace(OWN, decoder_steps=150, decoder_batch=8, learning_rate=5e-3, ema=0.8)
    return root / "out", train_joint(settings, [shard], root / "out", unseen)


def test_the_decoder_is_measured_on_pictures_held_out(answering):
    folder, report = answering
    answerer = load_answerer(f"pocket:{folder}", CPU)
    requests, wanted = [], []
    for picture, _, questions in question_samples():
        if tenth_of(hashlib.sha256(picture).hexdigest()) == HELD_OUT:
            pixels = answerer.preprocess("image", np.asarray(Image.open(io.BytesIO(picture))))
            for question, answer in questions:
                requests.append(Request("ask", language_of(question), pixels, question))
                wanted.append(answer)
    replies = answer_batch(answerer, requests, GenerateSettings(max_tokens=8))
    right = [reply.text == answer for reply, answer in zip(replies, wanted, strict=True)]
    figures = report["decoder"]["ask"]
    assert figures["examples"] == len(wanted) >= 16
    assert figures["right"] == round(float(np.mean(right)), 4)
    assert 0.7 < figures["right"] < 1 and 0 < figures["right_error"] < 0.2
    # Of captions of two words, a number and an end, all but the number is learned by heart.
    assert report["decoder"]["caption"]["nats_per_token"] < 1
    assert any("ask of the decoder" in line for line in format_report(report))


def test_the_last_lines_of_a_training_name_all_uses_of_it(answering, frozen, capsys):
    for (folder, report), lines in (
        (answering, [
            f"{answering[0]}: trained; use it with --encoder pocket:{answering[0]}",
            f"it answers, too: chiasm caption PICTURE --model pocket:{answering[0]}",
        ]),
        (frozen[::2], [f"{frozen[0]}: trained; use it with --encoder joint:{frozen[0]}"]),
    ):  # fmt: skip
        _print_report(report, folder)
        *_, before = format_report(report)
        assert capsys.readouterr().out.splitlines()[-1 - len(lines) :] == [before, *lines]


def test_what_is_too_long_for_the_decoder_is_counted(answering):
    _, report = answering
    assert report["too_long"] == report["trained_on"]
    line = f"{report['trained_on']} captions and entries of json were too long for it"
    assert line in format_report(report)


def test_captions_are_no_part_of_a_header(answering):
    """safetensors reads none of more than 100 MB."""
    folder, _ = answering
    (file,) = (folder / "samples").glob("*.safetensors")
    data = file.read_bytes()
    assert int.from_bytes(data[:8], "little") < 2000
    assert b"long long" not in data[: 8 + 2000] and data.count(b"long long") > 120


class Labels(Halves):
    """A picture is about a, and so is a text that says a."""

    name, fingerprint = "labels", "a" * 32

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        if modality == "image":
            return super().encode(modality, items)
        kinds = [int("".join(filter(str.isdigit, text)) or 0) for text in items]
        return Encoded(unit(self.of_a[kinds]))


def labelled_shard(path):
    """400 pictures of 20 kinds, with one caption a kind."""
    return write_tar(
        path,
        {
            f"{a:02d}{b:02d}": {"png": png(a, b), "txt": f"a picture of {a}".encode()}
            for a, b in itertools.product(range(KINDS), range(KINDS))
        },
    )


def test_a_caption_is_no_wrong_one_of_another_picture_that_has_it_too(tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS, "labels", lambda model, settings: Labels())
    settings = replace(FROZEN, encoder="labels:", frozen_steps=60)
    report = train_joint(settings, [labelled_shard(tmp_path / "a.tar")], tmp_path / "out", unseen)
    # All pictures of a kind have the same score: of them the first is as right as its own.
    assert report["matching"]["r1_before"] == report["matching"]["r1_after"] == 1
    assert report["matching"]["accuracy"] > 0.95
    samples = Samples(sorted((tmp_path / "out" / "samples").glob("*.safetensors")))
    rows = np.arange(len(samples))
    same = equal_to(samples.caption_numbers(rows, rows * 0))
    assert (same == (rows[:, None] // KINDS == rows // KINDS)).all()


def test_the_decoder_offers_what_its_own_pictures_taught(tmp_path):
    """Captions of pictures that have nothing else to learn are no part of its stage."""
    members = {
        f"{number:03d}": {
            "png": png(number, 1),
            "json": json.dumps(
                {"caption": "a square", "questions": [{"question": "Is it?", "answer": "yes"}]}
                if number % 2
                else {"caption": "一个方块"}
            ).encode(),
        }
        for number in range(120)
    }
    settings = replace(OWN, steps=1, fusion_steps=1, decoder_steps=1)
    shard = write_tar(tmp_path / "a.tar", members)
    report = train_joint(settings, [shard], tmp_path / "out", unseen)
    answerer = load_answerer(f"pocket:{tmp_path / 'out'}", CPU)
    assert answerer.tasks == {"caption": ("en",), "ask": ("en",)}
    assert report["tasks"] == ["caption", "ask"] and report["too_long"] == 0


def test_a_decoder_that_training_begins_on_keeps_what_it_goes_on_to_learn():
    tokens = ImageTokensConfig(side=24)
    config = replace(
        OWN.model,
        text=replace(OWN.model.text, vocabulary=300),
        fusion=SMALL,
        decoder=replace(OWN.model.decoder, prefixes=("caption:en", "ask:zh", "imagine")),
        image_tokens=tokens,
    )
    start = JointNetwork(config)
    after = own_config(OWN, config, 300, ("caption:en", "caption:zh", "ask:en"))  # all but one new
    assert after.image_tokens is None
    assert after.decoder.prefixes == ("caption:en", "caption:zh", "ask:en")
    network = own_network(after, start, OWN)
    new, old = (item.decoder.embedding.weight for item in (network, start))
    assert torch.equal(new[:300], old[:300])
    assert torch.equal(new[300], old[300]) and not torch.equal(new[301], old[301])
    there, kept = start.decoder.state_dict(), network.decoder.state_dict()
    same = there.keys() & kept.keys() - {"embedding.weight"}
    assert len(same) > 20 and all(torch.equal(there[name], kept[name]) for name in same)
    assert own_config(OWN, config, 300, ()).decoder is None


def test_a_precision_that_training_has_not_is_refused():
    settings = compose("laptop", ["encoder.precision=bfloat16"])
    with pytest.raises(UsageError, match="--precision bfloat16: expected --towers with it"):
        joint_settings(None, None, settings)
    assert joint_settings("pocket", None, settings).device.precision == "bfloat16"
