"""What is computed before heads are trained: features, statistics, landmarks, expanded captions."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import tiny_towers
import torch
from conftest import make_shard
from tiny_towers import PHRASES

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from chiasm.pipeline.training.two_tower import closed_form as solving
from chiasm.pipeline.training.two_tower import prepare as preparing
from chiasm.pipeline.training.two_tower.features import FeatureSettings, compute
from chiasm.pipeline.training.two_tower.held_out import FOLDS, held_out
from chiasm.pipeline.training.two_tower.ridge import JITTER
from chiasm.pipeline.training.two_tower.stream import (
    BUFFER,
    augmented_of,
    images_of,
    save_expanded,
    stream,
    words_of,
)
from chiasm.pipeline.two_tower.expansion import KERNEL_WEIGHT, SHARPNESS, WORD_WEIGHT
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower
from chiasm.pipeline.two_tower.network import CLAMP, TwoTowerConfig

CPU = EncoderSettings(device="cpu", precision="float32")
READ = ReadSettings()
TOKENS = FeatureSettings(tokens=True)


@pytest.fixture(scope="module")
def loaded(towers):
    image, text = towers
    return ImageTower(str(image), CPU), TextTower(str(text), CPU)


@pytest.fixture(scope="module")
def features(loaded, coloured, tmp_path_factory):
    return features_of(loaded, coloured, tmp_path_factory.mktemp("features"))


def features_of(loaded, coloured, folder):
    shards = list_shards([str(coloured)], None)
    return compute(shards, *loaded, folder, TOKENS, lambda line: None).paths


def config_of(features, **changed):
    statistics, first = preparing.survey(features), next(stream(features))
    shapes = {
        "image": "an image model", "image_fingerprint": "1", "text": "a text model",
        "text_fingerprint": "2", "image_width": first.image.shape[-1],
        "patch_width": first.patches.shape[-1], "text_width": first.text.shape[-1],
        "word_width": first.words.shape[-1], "sqrt_features": statistics.nonnegative,
        "landmarks": 50, "query_bank": 70,
        "text_landmarks": 60 if statistics.expandable else 0, "words": len(statistics.words),
        "dim": 64,
    }  # fmt: skip
    return TwoTowerConfig(**{**shapes, **changed})


def prepared_of(config, features, folder, every_sample):
    return preparing.prepare(
        config, features, preparing.survey(features), folder, every_sample=every_sample,
        device=torch.device("cpu"),
    )  # fmt: skip


def test_a_stream_gives_every_pair_once_in_the_order_of_its_seed(features):
    in_order = [pair.image for pair in stream(features)]
    shuffled = [pair.image for pair in stream(features, seed=3)]
    again = [pair.image for pair in stream(features, seed=3)]
    other = [pair.image for pair in stream(features, seed=4)]
    assert len(in_order) == 360 < BUFFER
    as_set = lambda images: sorted(image.numpy().tobytes() for image in images)  # noqa: E731
    assert as_set(in_order) == as_set(shuffled) == as_set(other)
    assert all(torch.equal(a, b) for a, b in zip(shuffled, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(shuffled, other, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(shuffled, in_order, strict=True))


def test_features_are_those_of_the_towers(features, loaded, coloured):
    image, text = loaded
    shard = list_shards([str(coloured / "p-00000.tar")], None)[0]
    sample = next(iter(read_samples(shard, READ)))
    pair = next(stream(features[:1]))
    seen = image([image.preprocess(decode(sample.picture, DecodeSettings(), image.side).image)])
    encoded = text(sample.captions)
    assert torch.allclose(pair.image.float(), seen.pooled[0], atol=2e-3)
    assert torch.allclose(pair.patches.float(), seen.tokens[0], atol=2e-3)
    assert torch.allclose(pair.text.float(), encoded.pooled, atol=2e-3)
    assert pair.ids == encoded.ids and len(pair.ids) == len(PHRASES)
    words, mask = words_of([pair], [1])
    assert mask.sum() == encoded.mask[1].sum()
    assert torch.allclose(words[mask], encoded.tokens[1][encoded.mask[1]], atol=2e-3)


def test_with_every_picture_a_landmark_it_is_kernel_ridge_as_the_books_have_it(features, tmp_path):
    """Nystroem with M = N is exact: (K'K + lK)^-1 K'Y = (K + lI)^-1 Y."""
    count = sum(1 for _ in stream(features))
    network = prepared_of(config_of(features, landmarks=count), features, tmp_path, True).eval()
    solving.solve(network, features, preparing.survey(features), tmp_path, every_sample=True)
    pairs = list(stream(features, expanded=tmp_path))
    x = network.sqrt_features(images_of(pairs)).double()
    mean, spread = x.mean(0), x.std(0, correction=0) + preparing.STD_FLOOR
    z = torch.nn.functional.normalize((x - mean) / spread, dim=-1)
    kernel = torch.exp(network.config.sharpness * (z @ z.T - 1))
    with torch.inference_mode():
        vectors = torch.stack([network.heads.texts(p.text.float()).mean(0) for p in pairs])
        target = vectors.double()
        books = torch.linalg.solve(
            kernel + solving.RIDGE * torch.eye(count), target - target.mean(0)
        )
        ours = network.kernel(x.float()).double()
        assert torch.allclose(ours @ network.kernel.vectors.double(), kernel @ books, atol=5e-3)
        shares = torch.stack([network.bag_of_words(p.ids).mean(0) for p in pairs]).double()
        books = torch.linalg.solve(
            kernel + solving.RIDGE * torch.eye(count), shares - shares.mean(0)
        )
        assert torch.allclose(
            ours @ network.kernel.word_weights.double(), kernel @ books, atol=5e-3
        )
        predicted = network.word_prior + kernel.float() @ books.float()
        by_network = network.word_classifier(network.kernel.standardised(x.float())).sigmoid()
        both = (predicted.clamp(CLAMP, 1 - CLAMP) + by_network) / 2
        assert torch.allclose(network.word_shares(x.float()), both, atol=5e-3)
    # By the way captions were drawn, one a picture, by which hubs are known.
    bank = network.hubness.query_bank
    alike = torch.stack([(network.heads.texts(p.text.float()) @ bank.T).amax(0) for p in pairs])
    assert bank.shape == (70, 63) and (alike.amax(0) > 1 - 1e-5).all()
    assert (alike > 1 - 1e-5).any(1).sum() >= 70
    bags = torch.stack([network.bag_of_words(p.ids).mean(0) for p in pairs])
    assert torch.allclose(network.word_prior, bags.mean(0), atol=1e-5)


def test_landmarks_are_drawn_evenly_from_all(features, tmp_path):
    pairs = list(stream(features))
    config = config_of(features, landmarks=30, text_landmarks=40)
    network = prepared_of(config, features, tmp_path, True)
    z = network.kernel.unit_standardised(network.sqrt_features(images_of(pairs)))
    alike = network.kernel.landmarks @ z.T
    places = preparing.evenly_drawn(len(pairs), 30)
    assert (alike[torch.arange(30), places] > 1 - 1e-5).all()
    assert len(set(places)) == 30 and places == sorted(places)
    thirds = np.bincount([place * 3 // len(pairs) for place in places], minlength=3)
    assert thirds.min() >= 4
    assert preparing.evenly_drawn(3, 30) == [0, 1, 2]
    own = torch.nn.functional.normalize(torch.cat([p.text for p in pairs]).float(), dim=-1)
    texts = preparing.evenly_drawn(len(own), 40)
    assert torch.allclose(network.expansion.landmarks, own[texts])


@pytest.mark.parametrize("every_sample", [False, True])
def test_captions_are_expanded_by_what_was_solved_without_them(features, tmp_path, every_sample):
    """By the books, in float64 and part by part: ridge from a caption to the mean of the others."""
    network = prepared_of(config_of(features, text_landmarks=25), features, tmp_path, every_sample)
    pairs = list(stream(features))
    expanded = list(stream(features, expanded=tmp_path))
    unit = lambda y: torch.nn.functional.normalize(y, dim=-1)  # noqa: E731
    own = [unit(pair.text.double()) for pair in pairs]
    others = [unit(each.sum(0) - each) for each in own]
    landmarks = network.expansion.landmarks.double()
    among = torch.exp(SHARPNESS * (landmarks @ landmarks.T - 1))
    kernels = [torch.exp(SHARPNESS * (each @ landmarks.T - 1)) for each in own]
    bags = [
        unit((network.bag_of_words(pair.ids) * network.expansion.idf).double()) for pair in pairs
    ]
    learned = [every_sample or not pair.held_out for pair in pairs]
    parts = [pair.fold if yes else None for pair, yes in zip(pairs, learned, strict=True)]
    assert {part for part in parts if part is not None} == set(range(FOLDS))
    assert (None in parts) != every_sample
    ours_of = lambda pair: network.expansion(pair.text.float(), network.bag_of_words(pair.ids))  # noqa: E731
    apart = []
    for without in {*parts, None}:
        rows = [i for i, yes in enumerate(learned) if yes and pairs[i].fold != without]
        y = torch.cat([others[i] for i in rows])
        y = y - y.mean(0)
        k, b = torch.cat([kernels[i] for i in rows]), torch.cat([bags[i] for i in rows])
        meaning = by_the_books(k, y, preparing.KERNEL_RIDGE * among)
        words = by_the_books(b, y, preparing.WORD_RIDGE * torch.eye(b.shape[1]))
        for i in [i for i, part in enumerate(parts) if part == without]:
            more = KERNEL_WEIGHT * unit(kernels[i] @ meaning) + WORD_WEIGHT * unit(bags[i] @ words)
            assert torch.allclose(expanded[i].text.double(), unit(own[i] + more), atol=1e-3)
            apart.append(ours_of(pairs[i]).double() - expanded[i].text.double())
        if without is None:
            pair = pairs[0]
            more = KERNEL_WEIGHT * unit(kernels[0] @ meaning) + WORD_WEIGHT * unit(bags[0] @ words)
            assert torch.allclose(ours_of(pair).double(), unit(own[0] + more), atol=1e-3)
    # What was solved with a caption would have expanded it otherwise.
    assert torch.cat(apart).abs().max() > 0.01


def by_the_books(x, y, penalty):
    left = x.T @ x + penalty
    return torch.linalg.solve(
        left + JITTER * left.diagonal().mean() * torch.eye(len(left)), x.T @ y
    )


def test_features_of_another_precision_are_others(loaded, coloured, features, tmp_path):
    image = ImageTower(
        str(loaded[0].folder.path), EncoderSettings(device="cpu", precision="bfloat16")
    )
    others = features_of((image, loaded[1]), coloured, tmp_path)
    assert not {path.name for path in others} & {path.name for path in features}


def test_what_is_lost_is_counted_by_reason_and_shards_that_are_cut_are_told(
    loaded, coloured, tmp_path
):
    whole = (coloured / "p-00000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 3])
    make_shard(tmp_path / "odd.tar", 6, captions=("", ""), broken=1)
    shards = list_shards([str(tmp_path)], None)
    messages = []
    computed = compute(shards, *loaded, tmp_path / "features", TOKENS, messages.append)
    assert 30 < computed.pairs < 60 and sum(1 for _ in stream(computed.paths)) == computed.pairs
    assert computed.dropped == {"truncated": 1, "no_pair": 2, "not_a_picture": 1}
    assert computed.damaged == [shards[0].id] and len(messages) == 2
    again = compute(shards, *loaded, tmp_path / "features", TOKENS, messages.append)
    assert again == computed and len(messages) == 2
    # The account is written last, and a run that was killed before it has a shard to do.
    next((tmp_path / "features").glob("*cut*.json")).unlink()
    assert compute(shards, *loaded, tmp_path / "features", TOKENS, messages.append) == computed
    assert len(messages) == 3


def test_expanded_captions_follow_their_pairs_into_any_order(features, tmp_path):
    for path in features:
        texts = [torch.full((len(p.text), 3), float(p.image[0])) for p in stream([path])]
        save_expanded(tmp_path, path, texts)
    shuffled = list(stream(features, seed=4, expanded=tmp_path))
    assert len(shuffled) == 360
    for pair in shuffled:
        assert pair.text.shape == (len(PHRASES), 3)
        assert (pair.text == pair.image[0].half()).all()


def test_a_preparation_that_is_there_is_taken(features, tmp_path):
    first = prepared_of(config_of(features), features, tmp_path, True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == len(features) + 1
    second = prepared_of(config_of(features), features, tmp_path, True)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for (name, ours), (_, theirs) in zip(
        first.named_parameters(), second.named_parameters(), strict=True
    ):
        assert ours.requires_grad or torch.equal(ours, theirs), name


def test_pairs_held_out_and_no_others_are_looked_at_closely(features, loaded, coloured):
    image, _ = loaded
    shard = list_shards([str(coloured / "p-00000.tar")], None)[0]
    known = list(zip(read_samples(shard, READ), stream(features[:1]), strict=True))
    assert [pair.held_out for _, pair in known] == [
        held_out(hashlib.sha256(sample.picture).hexdigest()) for sample, _ in known
    ]
    sample, pair = next(each for each in known if each[1].held_out)
    pixels = [image.preprocess(decode(sample.picture, DecodeSettings(), image.side).image)]
    seen = image.augmented(pixels, image(pixels).pooled)
    assert torch.allclose(augmented_of([pair]), seen, atol=2e-3)
    with pytest.raises(ValueError, match="expected 120, found"):
        augmented_of([pair for _, pair in known])


def test_a_shard_without_a_pair_is_gone_through(features, loaded, coloured, tmp_path):
    (tmp_path / "some").mkdir()
    for path in coloured.iterdir():
        (tmp_path / "some" / path.name).symlink_to(path)
    tiny_towers.make_pairs(tmp_path / "some" / "p-00001b.tar", 5, 9, captions=0)
    more = features_of(loaded, tmp_path / "some", tmp_path / "features")
    assert len(more) == 4
    ours = prepared_of(config_of(more), more, tmp_path / "ours", True)
    theirs = prepared_of(config_of(features), features, tmp_path / "theirs", True)
    for (name, mine), (_, other) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert mine.requires_grad or torch.equal(mine, other), name
    texts = [
        [pair.text for pair in stream(paths, expanded=tmp_path / folder)]
        for paths, folder in ((more, "ours"), (features, "theirs"))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*texts, strict=True)) and len(texts[0]) == 360


@pytest.mark.parametrize("several", [1, 40, 200])
def test_captions_are_expanded_where_enough_pairs_have_others(loaded, tmp_path, several):
    for seed, (count, captions) in enumerate([(150, 1), (several, 3)]):
        tiny_towers.make_pairs(tmp_path / "p" / f"{seed}.tar", count, seed, captions=captions)
    features = features_of(loaded, tmp_path / "p", tmp_path / "features")
    statistics = preparing.survey(features)
    assert statistics.fusible == (several > 1) and statistics.expandable == (several == 200)
    assert sum(statistics.several) == sum(
        len(pair.text) > 1 and not pair.held_out for pair in stream(features)
    )
    network = prepared_of(config_of(features), features, tmp_path / "expanded", False)
    own = [torch.nn.functional.normalize(p.text.float(), dim=-1) for p in stream(features)]
    expanded = [pair.text.float() for pair in stream(features, expanded=tmp_path / "expanded")]
    alike = torch.cat([(a * b).sum(-1) for a, b in zip(own, expanded, strict=True)])
    assert alike.isfinite().all()
    assert (alike < 0.999).any() if statistics.expandable else (alike > 0.999).all()
    assert (len(network.expansion.landmarks) > 0) == statistics.expandable


def test_a_preparation_that_was_killed_is_made_anew(features, tmp_path, monkeypatch):
    config = config_of(features)
    straight = prepared_of(config, features, tmp_path / "straight", True)

    class Killed(Exception):
        pass

    def killed(folder, path, texts):
        if path == features[1]:
            raise Killed
        save_expanded(folder, path, [torch.zeros_like(text) for text in texts])

    with monkeypatch.context() as patched:
        patched.setattr(preparing, "save_expanded", killed)
        with pytest.raises(Killed):
            prepared_of(config, features, tmp_path / "again", True)
    again = prepared_of(config, features, tmp_path / "again", True)
    assert torch.equal(again.expansion.kernel_weights, straight.expansion.kernel_weights)
    for ours, theirs in zip(
        stream(features, expanded=tmp_path / "again"),
        stream(features, expanded=tmp_path / "straight"),
        strict=True,
    ):
        assert torch.equal(ours.text, theirs.text)


def captioned_shard(path, members):
    """One picture with the given members: extension -> text."""
    picture = io.BytesIO()
    tiny_towers.picture("red", "blue", random.Random(0)).save(picture, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in {"png": picture.getvalue(), **members}.items():
            info = tarfile.TarInfo(f"a.{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return list_shards([str(path)], None)


BOTH = {
    "txt": b"red and blue",
    "json": json.dumps(
        {
            "caption": "blue right",
            "captions": ["red left , blue right", "red and blue", " blue right ", "", "pink"],
            "other": ["green", "green"],
        }
    ).encode(),
}


@pytest.mark.parametrize(
    ("members", "field", "captions"),
    [
        (BOTH, "", ["red and blue", "blue right", "red left , blue right", "pink"]),
        (BOTH, "captions", ["red left , blue right", "red and blue", "blue right", "pink"]),
        (BOTH, "other", ["green"]),
        (BOTH, "nowhere", ["red and blue"]),
        ({"txt": b"red and blue"}, "", ["red and blue"]),
        (
            {"json": BOTH["json"]}, "",
            ["blue right", "red left , blue right", "red and blue", "pink"],
        ),
        ({"txt": b"red", "json": b"no json"}, "", ["red"]),
    ],
)  # fmt: skip
def test_a_training_takes_every_caption_once_in_order(loaded, tmp_path, members, field, captions):
    shards = captioned_shard(tmp_path / "s" / "one.tar", members)
    records = []
    settings = FeatureSettings(ReadSettings(caption_field=field))
    computed = compute(shards, *loaded, tmp_path / "f", settings, records.append)
    assert (computed.pairs, computed.captions) == (1, len(captions))
    (pair,) = stream(computed.paths)
    assert pair.ids == loaded[1](captions).ids
    (record,) = records
    assert record["message"].endswith("features of 1 picture, 0 samples dropped")


def test_a_training_heeds_decode_and_batch_settings(loaded, tmp_path):
    shards = captioned_shard(tmp_path / "s" / "one.tar", {"txt": b"red"})

    def paths(**options):
        settings = FeatureSettings(**options)
        return compute(shards, *loaded, tmp_path / "f", settings, lambda _: None).paths

    assert (
        paths() == paths(batch=BatchSettings(size=1)) != paths(decode=DecodeSettings(scaled=True))
    )
    with pytest.raises(UsageError, match="found none in all of them"):
        paths(decode=DecodeSettings(max_member_bytes=1))


def test_one_picture_has_sixteen_captions_at_most(loaded, tmp_path):
    record = json.dumps({"captions": [f"red {n}" for n in range(40)]}).encode()
    shards = captioned_shard(tmp_path / "s" / "one.tar", {"json": record})
    assert compute(shards, *loaded, tmp_path / "f", TOKENS, lambda _: None).captions == 16


class Refusing:
    """A text tower that refuses one caption and has NaN for another."""

    def __init__(self, tower, refused, nan):
        self.tower, self.refused, self.nan = tower, refused, nan

    def __getattr__(self, name):
        return getattr(self.tower, name)

    def __call__(self, texts):
        if any(self.refused in text for text in texts):
            raise ValueError("no such text")
        made = self.tower(texts)
        bad = torch.tensor([self.nan in text for text in texts])
        return replace(made, pooled=made.pooled.where(~bad[:, None], torch.nan))


def test_samples_that_a_tower_refuses_are_dropped_and_the_training_goes_on(loaded, tmp_path):
    captions = [f"a picture of {c} beside red" for c in ("green", "pink", "blue", "white", "black")]
    shards = list_shards([str(make_shard(tmp_path / "a.tar", 5, captions=captions))])
    image, text = loaded
    tower = Refusing(text, "pink", "white")
    made = compute(shards, image, tower, tmp_path / "f", TOKENS, lambda line: None)
    assert (made.pairs, made.dropped) == (3, {"refused": 1, "not_finite": 1})
    kept = text([captions[number] for number in (0, 2, 4)]).pooled
    found = torch.stack([pair.text[0] for pair in stream(made.paths)]).float()
    assert torch.allclose(found, kept, atol=2e-3)
    with pytest.raises(EncoderError, match=r"features of some samples of .*a\.tar, found none of"):
        compute(shards, image, Refusing(text, "", "x"), tmp_path / "g", TOKENS, lambda line: None)
