"""Two towers, what must not pass in silence: features and losses that are not numbers, copies of a
picture on both sides of the split, a training that goes on as another, folders of earlier formats.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections import Counter
from copy import copy
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny_towers
import torch
import webdataset
from safetensors.torch import save_file
from torch.nn import functional

from chiasm.pipeline.errors import ChiasmError, EncoderError, UsageError
from chiasm.pipeline.model.config import FusionConfig
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.training.paired import TEXT_WEIGHTS, wins_by_one_standard_error
from chiasm.pipeline.training.two_tower import select as selecting
from chiasm.pipeline.training.two_tower import trainer
from chiasm.pipeline.training.two_tower.copies import one_pair_a_picture
from chiasm.pipeline.training.two_tower.features import (
    FeatureSettings,
    Unusable,
    _require_usable,
    compute,
)
from chiasm.pipeline.training.two_tower.held_out import HELD_OUT, held_out
from chiasm.pipeline.training.two_tower.loop import (
    FUSION,
    SETTINGS,
    TwoTowerSettings,
    train_two_tower,
)
from chiasm.pipeline.training.two_tower.resume import require_same
from chiasm.pipeline.training.two_tower.select import best_mean, gallery, ranks, reranked, select
from chiasm.pipeline.training.two_tower.stream import Pair, pack, stream
from chiasm.pipeline.training.two_tower.trainer import Training, TrainSettings
from chiasm.pipeline.two_tower.checkpoint import load_two_tower, save_two_tower
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

CPU = EncoderSettings(device="cpu", precision="float32")
CONFIG = TwoTowerConfig(
    "an image model", "1", "a text model", "2", image_width=6, patch_width=5, text_width=7,
    word_width=4, landmarks=3, text_landmarks=2, query_bank=3, words=5, dim=9, image_hidden=6,
    text_hidden=6, word_hidden=6,
    fusion=FusionConfig(fusion="gated", width=8, depth=1, heads=2, slots=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def loaded(towers):
    image, text = towers
    return ImageTower(str(image), CPU), TextTower(str(text), CPU)


def pairs_of(count, captions=2, **changed):
    """Pictures with captions, drawn."""
    chance = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=chance)  # noqa: E731
    return [
        Pair(
            image=draw(6), patches=draw(3, 5), text=draw(captions, 7), words=draw(captions, 2, 4),
            lengths=torch.full((captions,), 2), ids=[[i % 5, (i + n) % 5] for n in range(captions)],
            **{"picture": i, "fold": 0, "augmented": draw(6), **changed},
        )
        for i in range(count)
    ]  # fmt: skip


def network_of(config=CONFIG):
    """A network with random weights, everything set."""
    torch.manual_seed(1)
    network = TwoTowerNetwork(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.copy_(0.5 * torch.randn(parameter.shape))
        network.word_ids.copy_(torch.arange(config.words))
        network.word_prior.copy_(torch.linspace(0.001, 0.5, config.words))
        network.hubness.query_bank.copy_(functional.normalize(network.hubness.query_bank, dim=-1))
        network.kernel.std.copy_(network.kernel.std.abs() + 0.5)
    return network


def test_a_fusion_that_became_nan_does_not_ship():
    network, pairs = network_of(), pairs_of(30)
    with torch.no_grad():
        network.fusion.residual.weight.fill_(torch.nan)
    selection = select(network, pairs)
    assert not selection.fusion and not selection.figures["fusion_ships"]
    names = ("r1", "r1_error", "r5", "r5_error", "r10", "r10_error")
    assert selection.figures["fusion"] == dict.fromkeys(names, 0.0)
    assert 0 < selection.figures["mean"]["r10"] < 1


def test_recalls_have_the_standard_errors_of_pictures():
    network, pairs = network_of(), pairs_of(30, captions=4)
    figures = select(network, pairs).figures
    found = gallery(network, pairs)
    for name, vectors in (("image", found.image), ("text", found.text)):
        right = (ranks(found, vectors) < 10).reshape(30, 3)
        assert figures[name]["r10"] == round(right.mean(), 4)
        by_picture = (right - right.mean()).sum(axis=1)
        assert figures[name]["r10_error"] == round(np.sqrt((by_picture**2).sum()) / 90, 4) > 0
    assert figures["text_to_image"].keys() == figures["mean"].keys() == figures["image"].keys()
    assert figures["matching"].keys() == {
        "r1_before", "r1_before_error", "r1_after", "r1_after_error",
    }  # fmt: skip


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_fusion_has_to_beat_the_best_weighted_mean(monkeypatch, power):
    """Pictures say nothing here, captions much: a fusion that leaves pictures out beats the even
    mean, which ships, and is no better than the best weighted mean, so it does not."""
    network, pairs = network_of(), pairs_of(60, captions=4)
    with torch.no_grad():
        network.heads.text.out.weight.zero_()
        network.heads.text.skip.weight.copy_(torch.eye(8, 7))
    for pair in pairs:
        pair.text.copy_(pair.text[:1] + 0.3 * pair.text)
    found = gallery(network, pairs)
    rows = found.rows.numpy()
    network.hubness.query_bank = torch.nn.Parameter(found.captions[::5].clone(), False)
    monkeypatch.setattr(selecting, "POWERS", (power,))
    monkeypatch.setattr(selecting, "fused_vectors", lambda *_: found.text)
    selection = select(network, pairs)
    figures = selection.figures
    of = {weight: network.reduce_hubness(found.mean(weight)) for weight in TEXT_WEIGHTS}
    assert (of[0.5][:, -1] > 0.01).any() == (power > 0)
    of_fusion = ranks(found, of[1.0]) < 1
    assert wins_by_one_standard_error(of_fusion, ranks(found, of[0.5]) < 1, rows)
    assert not selection.fusion and not figures["fusion_ships"]
    assert figures["text_weight"] > 0.6 and network.config.text_weight == 0.5
    assert figures["mean"]["r1"] == round((ranks(found, of[0.5]) < 1).mean(), 4)
    first = {weight: (ranks(found, each) < 1).sum() for weight, each in of.items()}
    weight, of_best = best_mean(network, found)
    assert weight == figures["text_weight"] == max(first, key=first.__getitem__)
    assert (of_best == ranks(found, of[weight])).all()
    assert figures["best_mean"]["r1"] == round((of_best < 1).mean(), 4) > figures["mean"]["r1"]
    monkeypatch.setattr(selecting, "best_mean", lambda *_: (0.0, ranks(found, of[0.0])))
    assert select(network, pairs).fusion


def test_vectors_that_are_nan_find_no_picture_by_matching_either():
    network, pairs = network_of(), pairs_of(12)
    found = gallery(network, pairs)
    assert (ranks(found, found.image * torch.nan) == 11).all()
    unfound = replace(found, image=found.image * torch.nan)
    before, after = reranked(network, pairs, unfound)
    assert before.shape == (24,) and not before.any() and not after.any()


class Growing:
    """A text tower with token states so many times as large."""

    def __init__(self, tower, factor):
        self.tower, self.factor = tower, factor

    def __getattr__(self, name):
        return getattr(self.tower, name)

    def __call__(self, texts):
        made = self.tower(texts)
        return replace(made, tokens=made.tokens * self.factor)


def test_features_that_float16_does_not_hold_are_refused_by_the_name_of_their_tower(
    loaded, tmp_path
):
    image, text = loaded
    tiny_towers.make_pairs(tmp_path / "p.tar", 12, 0)
    shards = list_shards([str(tmp_path / "p.tar")], None)
    large = Growing(text, 1e6)
    with pytest.raises(EncoderError) as caught:
        compute(shards, image, large, tmp_path / "f", FeatureSettings(tokens=True), print)
    message = str(caught.value)
    assert f"token features of the text tower {text.folder.name}: " in message
    assert "too large for float16; train without --fusion" in message
    made = compute(shards, image, large, tmp_path / "f", FeatureSettings(), lambda line: None)
    pairs = list(stream(made.paths))
    assert len(pairs) == 12 and all(pair.text.isfinite().all() for pair in pairs)
    assert {(pair.patches.shape[0], pair.words.shape[1]) for pair in pairs} == {(0, 0)}


class Silencing:
    """A text tower that gives nothing but zeros for captions with one word, or infinity."""

    def __init__(self, tower, word, value):
        self.tower, self.word, self.value = tower, word, value

    def __getattr__(self, name):
        return getattr(self.tower, name)

    def __call__(self, texts):
        made = self.tower(texts)
        some = torch.tensor([self.word in text for text in texts])
        return replace(made, pooled=made.pooled.where(~some[:, None], self.value))


@pytest.mark.parametrize(("value", "reason"), [(0.0, "not_unit"), (1e5, "not_finite")])
def test_what_has_no_usable_vector_is_counted_and_most_of_it_is_an_error(
    loaded, tmp_path, value, reason
):
    image, text = loaded
    tiny_towers.make_pairs(tmp_path / "p.tar", 20, 0)
    shards = list_shards([str(tmp_path / "p.tar")], None)
    settings = FeatureSettings()
    some = compute(
        shards, image, Silencing(text, "pink", value), tmp_path / "f", settings, lambda line: None
    )
    assert set(some.dropped) == {reason} and some.pairs + some.dropped[reason] == 20
    assert 0 < some.dropped[reason] < 10
    with pytest.raises(
        EncoderError, match=rf"{reason}: pooled features of the text tower .*; take"
    ):
        compute(
            shards, image, Silencing(text, "", value), tmp_path / "g", settings, lambda line: None
        )


def test_towers_without_features_of_the_only_sample_are_named(loaded, tmp_path):
    """Not the shards: they have a picture and a caption."""
    image, text = loaded
    tiny_towers.make_pairs(tmp_path / "p.tar", 1, 0)
    shards = list_shards([str(tmp_path / "p.tar")], None)
    with pytest.raises(EncoderError, match=r"features of 0, none of 1, the last one .*; take"):
        compute(shards, image, Silencing(text, "", 0.0), tmp_path / "f", FeatureSettings(), print)


@pytest.mark.parametrize(
    ("part", "value", "precision", "do"),
    [
        ("text", torch.nan, "bfloat16", "try --precision float32"),
        ("text", torch.nan, "float32", ""),
        ("text", 1e5, "bfloat16", ""),
        ("text", 0.0, "bfloat16", ""),
        ("words", torch.nan, "float32", "train without --fusion, which alone reads tokens"),
        ("words", 1e5, "bfloat16", "train without --fusion, which alone reads tokens"),
    ],
)
def test_what_helps_against_unusable_features_is_what_is_wrong_with_them(
    loaded, part, value, precision, do
):
    image, text = (copy(tower) for tower in loaded)
    image.precision = text.precision = precision
    (pair,) = pairs_of(1)
    changed = replace(pair, **{part: torch.full_like(getattr(pair, part), value)})
    with pytest.raises(Unusable) as refused:
        _require_usable(changed, image, text)
    assert refused.value.do == do


def test_json_that_cannot_be_read_is_counted(loaded, tmp_path):
    png = io.BytesIO()
    tiny_towers.picture("red", "blue", random.Random(0)).save(png, "PNG")
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        for number, captions in enumerate((b'{"captions": ["pink"]}', b'{"captions": ["pi')):
            members = {"png": png.getvalue(), "txt": b"red and blue", "json": captions}
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    shards = list_shards([str(tmp_path / "p.tar")], None)
    made = compute(shards, *loaded, tmp_path / "f", FeatureSettings(), lambda line: None)
    assert (made.pairs, made.captions, made.unread) == (2, 3, {"bad_json": 1})


def test_a_training_stops_before_the_step_and_before_any_save(tmp_path):
    pairs = pairs_of(8, augmented=None)
    training = Training(network_of(), TrainSettings(steps=4, fusion_steps=0))
    before = {name: tensor.clone() for name, tensor in training.trained.items()}
    bad = replace(pairs[3], image=torch.full((6,), torch.inf))
    with pytest.raises(ChiasmError, match=r"step 1: expected finite losses .* found loss nan"):
        training.train_step([*pairs[:3], bad, *pairs[4:]], torch.Generator().manual_seed(0))
    assert training.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.trained.items())
    path, saved = tmp_path / "pairs.tar", tmp_path / "state"
    with webdataset.TarWriter(str(path)) as writer:
        for number, pair in enumerate([*pairs, bad]):
            writer.write({"__key__": f"{number:08d}", "safetensors": pack(pair)})
    steps = []
    (tmp_path / "expanded").mkdir()
    expanded = {"text": torch.cat([p.text for p in [*pairs, bad]]).half()}
    expanded["counts"] = torch.full((9,), 2)
    save_file(expanded, tmp_path / "expanded" / "pairs.safetensors")
    with pytest.raises(ChiasmError, match="expected finite losses and gradients"):
        trainer.train(
            [path], network_of(), TrainSettings(steps=9, fusion_steps=0, batch=4,
            checkpoint_every=1), expanded=tmp_path / "expanded", every_sample=True,
            checkpoint=saved, on_step=lambda training, losses: steps.append(training.step),
        )  # fmt: skip
    again = Training(network_of(), TrainSettings())
    if saved.exists():
        again.resume(saved)
        assert all(tensor.isfinite().all() for tensor in again.trained.values())
    assert len(steps) < 3 and again.step == len(steps)


def test_weights_that_float16_does_not_hold_are_not_saved(tmp_path):
    network = network_of()
    with torch.no_grad():
        network.kernel.vectors[0, 0] = 1e5
    with pytest.raises(ChiasmError, match=r"finite as float16, found others in kernel\.v"):
        save_two_tower(tmp_path, network)
    assert not list(tmp_path.iterdir())


def write_copies(path, numbers, phrases=tiny_towers.PHRASES, seed=0):
    """Pictures of these numbers, each under a key for every phrase, phrase by phrase."""
    pngs = {}
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        left, right = rng.sample(list(tiny_towers.COLOURS), 2)
        png = io.BytesIO()
        tiny_towers.picture(left, right, rng).save(png, "PNG")
        pngs[number] = png.getvalue(), left, right
    with tarfile.open(path, "w") as tar:
        for j, phrase in enumerate(phrases):
            for number, (png, left, right) in pngs.items():
                for extension, data in (("png", png), ("txt", phrase.format(left, right).encode())):
                    info = tarfile.TarInfo(f"{number:04d}_{j}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def test_copies_of_a_picture_are_one_pair_with_all_captions(loaded, tmp_path):
    """Within a shard and over two of them; a text that came before is left out."""
    folder = tmp_path / "p"
    folder.mkdir()
    write_copies(folder / "a.tar", range(60))
    again = [tiny_towers.PHRASES[0], "a picture: {} and {}"]
    write_copies(folder / "b.tar", range(50, 70), again)
    shards = list_shards([str(folder)], None)
    made = compute(shards, *loaded, tmp_path / "f", FeatureSettings(tokens=True), lambda x: None)
    copies = {}
    for pair in stream(made.paths):
        copies.setdefault(pair.picture, []).append(pair)
    paths = one_pair_a_picture(made.paths)
    assert [path.parent for path in paths] == [path.parent for path in made.paths]
    merged = list(stream(paths))
    assert len(merged) == 70 == len({pair.picture for pair in merged})
    counts = Counter(len(pair.ids) for pair in merged)
    assert counts == {len(tiny_towers.PHRASES): 50, len(tiny_towers.PHRASES) + 1: 10, 2: 10}
    for whole in merged:
        assert {(p.held_out, p.fold) for p in copies[whole.picture]} == {
            (whole.held_out, whole.fold)
        }
        own = {tuple(p.ids[0]): p for p in reversed(copies[whole.picture])}
        assert sorted(own) == sorted(map(tuple, whole.ids))
        for row, ids in enumerate(whole.ids):
            pair = own[tuple(ids)]
            length = int(pair.lengths[0])
            assert whole.lengths[row] == length
            assert torch.equal(whole.text[row], pair.text[0])
            assert torch.equal(whole.words[row, :length], pair.words[0, :length])
    before = [path.stat().st_mtime_ns for path in paths]
    assert one_pair_a_picture(made.paths) == paths and one_pair_a_picture(paths) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_what_is_enough_to_train_on_is_counted_in_pictures(towers, tmp_path):
    write_copies(tmp_path / "a.tar", range(15))  # 45 pairs
    settings = TwoTowerSettings(*map(str, towers), train=TrainSettings(steps=2), encoder=CPU)
    shards = list_shards([str(tmp_path / "a.tar")], None)
    with pytest.raises(UsageError, match=r"20 or more pictures to train on, and 4 held out, found"):
        train_two_tower(settings, shards, tmp_path / "to", lambda line: None)


def test_one_picture_in_ten_is_held_out():
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(5000)]
    assert 0.08 < np.mean([held_out(digest) for digest in digests]) < 0.12
    assert HELD_OUT == 10


def test_a_picture_that_a_batch_has_twice_is_no_negative_of_itself():
    """By the formula: the negatives of a batch with every picture twice are each counted twice,
    and no copy is among them."""
    pairs = pairs_of(6, captions=1)
    training = Training(network_of(replace(CONFIG, fusion=None)), TrainSettings(dropout=0.0))
    with torch.no_grad():
        once = training.losses(pairs, torch.Generator().manual_seed(0))["image"]
        twice = training.losses([*pairs, *pairs], torch.Generator().manual_seed(0))["image"]
        v = training.network.heads.images(training.network.sqrt_features(
            torch.stack([p.image for p in pairs])))  # fmt: skip
        q = training.network.heads.texts(torch.cat([p.text for p in pairs]))
    odds = float(training.scales[0].detach().exp()) * (v @ q.T).double()

    def brute(copies):
        rows = []
        for i in range(6):
            for scores in (odds[i], odds[:, i]):
                others = sum(copies * float(scores[j].exp()) for j in range(6) if j != i)
                own = float(odds[i, i].exp())
                rows.append(-np.log(own / (own + others)))
        return 0.7 * np.mean(rows)

    assert float(once) == pytest.approx(brute(1), rel=1e-4)
    assert float(twice) == pytest.approx(brute(2), rel=1e-4)


@pytest.fixture
def begun(towers, tmp_path):
    """A training that has begun: its settings, its shards and the folder that says so."""
    tiny_towers.make_pairs(tmp_path / "p" / "a.tar", 10, 0)
    shards = list_shards([str(tmp_path / "p")], None)
    image, text = map(str, towers)
    settings = TwoTowerSettings(image, text, train=TrainSettings(steps=2), encoder=CPU)
    with pytest.raises(UsageError, match="20 or more pictures to train on"):
        train_two_tower(settings, shards, tmp_path / "to", lambda line: None)
    return settings, shards, tmp_path / "to"


@pytest.mark.parametrize(
    ("changed", "before", "now"),
    [
        (
            {"encoder": replace(CPU, precision="bfloat16")},
            "precision float32",
            "precision bfloat16",
        ),
        ({"train": TrainSettings(steps=3)}, "learn.steps 2", "learn.steps 3"),
        ({"fusion": FUSION}, "fusion none", "fusion gated, width 128"),
    ],
)
def test_a_training_that_began_otherwise_is_refused_by_name(begun, changed, before, now):
    settings, shards, folder = begun
    features = sorted((folder / "features").iterdir())
    with pytest.raises(UsageError) as caught:
        train_two_tower(replace(settings, **changed), shards, folder, lambda line: None)
    message = str(caught.value)
    assert f"expected {before}" in message and f"found {now}" in message, message
    assert message.endswith("give what it began with, or another folder")
    assert sorted((folder / "features").iterdir()) == features  # refused before they are computed


def test_another_text_tower_or_shard_is_refused_by_name(begun, tmp_path):
    settings, shards, folder = begun
    other = tiny_towers.static_text_folder(tmp_path / "other")
    with pytest.raises(UsageError, match=r"expected text_encoder st:\S+sentences, .* as it began"):
        train_two_tower(replace(settings, text=str(other)), shards, folder, lambda line: None)
    tiny_towers.make_pairs(tmp_path / "p" / "b.tar", 10, 1)
    more = list_shards([str(tmp_path / "p")], None)
    with pytest.raises(UsageError, match=r"expected shards\.b-\w+ none, as it began, found shards"):
        train_two_tower(settings, more, folder, lambda line: None)


def test_a_training_of_an_older_version_is_not_split_again_in_silence(begun):
    settings, shards, folder = begun
    facts = json.loads((folder / SETTINGS).read_text())
    require_same(folder / SETTINGS, facts)
    older = {name: facts[name] for name in ("config", "learn", "features")}
    older["format"] = "chiasm two-tower model 6"
    (folder / SETTINGS).write_text(json.dumps(older))
    with pytest.raises(UsageError) as caught:
        train_two_tower(settings, shards, folder, lambda line: None)
    assert str(caught.value) == (
        f"training in {folder}: expected held out by sha256 of the picture, found by its key, by "
        "another version of chiasm; train into another folder"
    )
    (folder / SETTINGS).write_text(json.dumps(facts | {"format": "chiasm two-tower model 9"}))
    with pytest.raises(UsageError, match="two-tower model 8, found chiasm two-tower model 9, by"):
        train_two_tower(settings, shards, folder, lambda line: None)


def folder_of_format(folder, number):
    """A model folder as chiasm wrote it: names, shapes and values by hand."""
    torch.manual_seed(3)
    draw = lambda *shape: (0.4 * torch.randn(shape)).half()  # noqa: E731
    shapes = {
        "heads.image.norm.weight": (6,), "heads.image.norm.bias": (6,),
        "heads.image.skip.weight": (8, 6), "heads.image.hidden.0.weight": (6, 6),
        "heads.image.hidden.0.bias": (6,), "heads.image.out.weight": (8, 6),
        "heads.image.out.bias": (8,), "heads.text.norm.weight": (7,),
        "heads.text.norm.bias": (7,), "heads.text.skip.weight": (8, 7),
        "heads.text.hidden.0.weight": (6, 7), "heads.text.hidden.0.bias": (6,),
        "heads.text.out.weight": (8, 6), "heads.text.out.bias": (8,),
        "expansion.landmarks": (2, 7), "expansion.meaning": (2, 7), "expansion.words": (5, 7),
        "kernel.landmarks": (3, 6), "kernel.shift": (6,), "kernel.spread": (6,),
        "kernel.vectors": (3, 8), "kernel.shares": (3, 5), "hubs.asked": (3, 8),
        "words.weight": (5, 6), "words.bias": (5,), "words.net.1.weight": (6, 6),
        "words.net.1.bias": (6,),
    }  # fmt: skip
    if number == 7:
        del shapes["kernel.shares"]
    tensors = {name: draw(*shape) for name, shape in shapes.items()}
    tensors["kernel.spread"] = tensors["kernel.spread"].abs() + 0.5
    tensors["expansion.rarity"] = torch.rand(5)
    tensors["word_ids"] = torch.arange(5)
    tensors["usual"] = torch.tensor([0.0005, 0.01, 0.1, 0.3, 0.6])  # a word in every band
    bands = [0.9] if number == 7 else [0.9, 0.7, 0.5, 0.3]
    tensors["evidence"] = torch.tensor([-1.0, 2.0, *bands, 0.2])
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fields = asdict(replace(CONFIG, fusion=None, text_weight=0.65))
    for name, saved in (
        ("sqrt_features", "root"), ("query_bank", "asked"), ("hubness_power", "hub_power"),
    ):  # fmt: skip
        fields[saved] = fields.pop(name)
    fields = {"format": f"chiasm two-tower model {number}", **fields}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize("number", [6, 7, 8])
def test_a_folder_of_every_format_matches_as_it_did(tmp_path, number):
    """Formats 6 and 8 have words by two sources and in four bands, 7 by one and in none: from the
    files' own tensors, by the formula. The mean's weight is the folder's."""
    saved = folder_of_format(tmp_path / "old", number)
    network = load_two_tower(tmp_path / "old")
    pairs = pairs_of(4, captions=1)
    pooled = torch.stack([pair.augmented for pair in pairs])
    bag = network.bag_of_words([[0, 1, 3], [2, 4], [], [0, 2]])
    text = network.text_vectors(torch.cat([pair.text for pair in pairs]), bag)
    with torch.inference_mode():
        evidence = network.image_evidence(pooled)
        logits = network.match_logits(network.match_features(text, bag, evidence))
    z = (pooled.double() - saved["kernel.shift"]) / saved["kernel.spread"]
    near = torch.exp(2 * (functional.normalize(z, dim=-1) @ saved["kernel.landmarks"].T - 1))
    hidden = functional.gelu(z @ saved["words.net.1.weight"].T + saved["words.net.1.bias"])
    by_network = (hidden @ saved["words.weight"].T + saved["words.bias"]).sigmoid()
    p = by_network.clamp(1e-3, 1 - 1e-3)
    if number != 7:
        ridge = saved["usual"] + near @ saved["kernel.shares"]
        p = (ridge.clamp(1e-3, 1 - 1e-3) + by_network) / 2
    q = saved["usual"].clamp(1e-3, 1 - 1e-3)
    bias, similarity, *bands, absent = saved["evidence"].tolist()
    cosines = (text.double() @ network.image_vectors(pooled).double().T).tolist()
    for t in range(4):
        for i in range(4):
            wanted = bias + similarity * cosines[t][i]
            for w, band in enumerate([0] * 5 if number == 7 else [0, 1, 2, 3, 3]):
                if bag[t, w]:
                    wanted += bands[band] * float(torch.log(p[i, w] / q[w]))
                else:
                    wanted += absent * float(torch.log((1 - p[i, w]) / (1 - q[w])))
            assert float(logits[t, i]) == pytest.approx(wanted, abs=1e-4)
    vectors = network.image_vectors(pooled)
    mean = functional.normalize(0.65 * text + 0.35 * vectors, dim=-1)
    assert torch.allclose(network.mean(text, vectors), mean, atol=1e-6)
    save_two_tower(tmp_path / "again", network)
    for name in ("model.safetensors", "config.json"):
        ours, theirs = (tmp_path / which / name for which in ("again", "old"))
        assert ours.stat().st_size == theirs.stat().st_size
