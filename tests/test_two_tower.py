"""Two frozen towers and what is learned on them: features, heads, kernels, evidence, the choice."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import tiny_towers
import torch
from PIL import Image
from tiny_towers import COLOURS, PHRASES

from benchmarks.random_models import clip_folder
from pipeline.encoders import EncoderSettings, load_encoder, mean_of, require_matcher
from pipeline.errors import EncoderError, UsageError
from pipeline.images import DecodeSettings, decode
from pipeline.model.config import FusionConfig
from pipeline.samples import ReadSettings, read_samples
from pipeline.shards import list_shards
from pipeline.two_tower import prepare as preparing
from pipeline.two_tower import solve as solving
from pipeline.two_tower.expansion import FROM_MEANING, FROM_WORDS, SHARPNESS
from pipeline.two_tower.features import (
    BUFFER,
    PARTS,
    compute,
    images_of,
    save_expanded,
    stream,
    words_of,
)
from pipeline.two_tower.frozen import ImageTower, TextTower
from pipeline.two_tower.judge import better
from pipeline.two_tower.learn import LearnSettings, learn
from pipeline.two_tower.network import TwoTowerConfig
from pipeline.two_tower.train import TwoTowerSettings, train_two_tower

CPU = EncoderSettings(device="cpu", precision="float32")
SHORT = LearnSettings(steps=40, fusion_steps=20, batch=64, warmup=5, checkpoint_every=15)
TINY = FusionConfig(how="gated", width=32, depth=1, heads=2, slots=4)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    return tiny_towers.image_folder(folder / "image"), tiny_towers.text_folder(folder / "text")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for seed in range(3):
        tiny_towers.make_pairs(folder / f"p-{seed:05d}.tar", 120, seed)
    return folder


def settings_for(towers, learn=SHORT, fusion=TINY):
    image, text = towers
    return TwoTowerSettings(str(image), str(text), fusion=fusion, learn=learn, encoder=CPU)


@pytest.fixture(scope="module")
def trained(towers, pairs, tmp_path_factory):
    """A training to its end: its folder and its report."""
    folder = tmp_path_factory.mktemp("trained")
    shards = list_shards([str(pairs)], None)
    return folder, train_two_tower(settings_for(towers), shards, folder, lambda line: None)


@pytest.fixture(scope="module")
def features(trained):
    return sorted((trained[0] / "features").glob("*.tar"))


def test_it_learns_to_find_and_tells_so_of_samples_held_out(trained):
    folder, report = trained
    assert report == json.loads((folder / "report.json").read_text())
    assert (report["pairs"], report["lost"]) == (360, 0)
    held = report["held_out"]
    assert 20 <= held <= 60 and report["queries"] == 2 * held
    # 56 ordered pairs of colours: of some 36 pictures a few have twins, and no query can tell.
    assert report["image"]["r5"] > 0.7
    assert report["mean"]["r1"] >= report["image"]["r1"]
    assert report["matching"]["r1_after"] > 0.5


def test_the_folder_is_an_encoder_that_finds_and_matches(trained):
    folder, report = trained
    encoder = require_matcher(load_encoder(f"two-tower:{folder}", CPU))
    rng = random.Random(99)
    told = [("red", "blue"), ("green", "white"), ("yellow", "black"), ("pink", "green")]
    pixels = [encoder.preprocess(tiny_towers.picture(*each, rng)) for each in told]
    texts = [PHRASES[0].format(*each) for each in told]
    image, text = encoder.encode_images(pixels), encoder.encode_texts(texts)
    assert image.shape == text.shape == (4, encoder.dim) and image.dtype == np.float32
    assert np.allclose(np.linalg.norm(image, axis=1), 1, atol=1e-5)
    assert ((text @ image.T).argmax(1) == np.arange(4)).all()
    joint = encoder.encode_pairs(image, text, pixels, texts)
    assert np.allclose(np.linalg.norm(joint, axis=1), 1, atol=1e-5)
    if not report["fusion_ships"]:
        weight = report["text_weight"]
        assert np.allclose(joint, mean_of((1 - weight) * image, weight * text), atol=1e-5)
    crossed = [(i, j) for i in range(4) for j in range(4)]
    logits = encoder.match_pairs([pixels[i] for i, _ in crossed], [texts[j] for _, j in crossed])
    assert (logits.reshape(4, 4).argmax(1) == np.arange(4)).all()
    alone = [encoder.match_pairs([pixels[i]], [texts[j]])[0] for i, j in crossed]
    assert np.allclose(logits, alone, atol=1e-3)
    assert encoder.encode_images([]).shape == encoder.encode_texts([]).shape == (0, encoder.dim)
    assert encoder.match_pairs([], []).shape == (0,)


def test_a_fusion_that_ships_fuses_by_tokens(trained, towers, pairs):
    """Saved with a fusion, the encoder's joint vectors are those of the network on features."""
    folder, _ = trained
    fused = folder.parent / "fused"
    shutil.copytree(folder, fused, ignore=shutil.ignore_patterns("model.safetensors"))
    judged = json.loads((fused / "judged.json").read_text())
    (fused / "judged.json").write_text(json.dumps({**judged, "fusion": True}))
    (fused / "all-samples.safetensors").unlink(missing_ok=True)  # learned without the fusion
    train_two_tower(settings_for(towers), list_shards([str(pairs)], None), fused, lambda _: None)
    encoder = load_encoder(f"two-tower:{fused}", CPU)
    assert encoder.preprocessing["joint"] == "learned fusion"
    rng = random.Random(7)
    pixels = [encoder.preprocess(tiny_towers.picture("red", c, rng)) for c in ("blue", "pink")]
    texts = ["red and blue", "a picture of red beside pink"]
    image, text = encoder.encode_images(pixels), encoder.encode_texts(texts)
    together = encoder.encode_pairs(image, text, pixels, texts)
    apart = [
        encoder.encode_pairs(image[i : i + 1], text[i : i + 1], pixels[i : i + 1], texts[i : i + 1])
        for i in range(2)
    ]
    assert np.allclose(together, np.concatenate(apart), atol=1e-5)
    assert not np.allclose(together, mean_of(image, text), atol=1e-4)


def test_killed_and_started_again_it_ends_with_the_same_weights(
    trained, towers, features, tmp_path
):
    told = json.loads((trained[0] / "settings.json").read_text())
    config = TwoTowerConfig.from_json(told["config"])
    straight = learned(features, config, tmp_path / "straight")
    again = learned(features, config, tmp_path / "again")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in straight.state_dict().items())

    class Killed(Exception):
        pass

    def killed_at_33(step, losses):
        if step == 33:
            raise Killed

    with pytest.raises(Killed):
        learned(features, config, tmp_path / "resumed", killed_at_33)
    steps = []
    resumed = learned(features, config, tmp_path / "resumed", lambda step, _: steps.append(step))
    assert steps == list(range(31, 41))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def learned(features, config, checkpoint, told=lambda step, losses: None):
    expanded = checkpoint.parent / "expanded"
    prepared = prepared_of(config, features, expanded, every_sample=False)
    return learn(
        features, prepared, SHORT, expanded=expanded, every_sample=False, checkpoint=checkpoint,
        told=told,
    )  # fmt: skip


def prepared_of(config, features, folder, every_sample):
    return preparing.prepare(
        config, features, preparing.survey(features), folder, every_sample=every_sample,
        device=torch.device("cpu"),
    )  # fmt: skip


def test_features_are_computed_once_and_again_where_something_changed(trained, towers, pairs):
    folder, _ = trained
    before = {path: path.stat().st_mtime_ns for path in (folder / "features").glob("*.tar")}
    assert len(before) == 3
    (folder / "features" / ".x.99999999.tmp").write_bytes(b"left by a kill")
    told = []
    shards = list_shards([str(pairs)], None)
    assert train_two_tower(settings_for(towers), shards, folder, told.append)["mean"]
    assert {path: path.stat().st_mtime_ns for path in (folder / "features").glob("*.tar")} == before
    assert not list((folder / "features").glob(".*"))
    assert told == []  # nothing was computed, learned or judged again
    with pytest.raises(UsageError, match="found others: "):
        train_two_tower(settings_for(towers), shards[:1], folder, told.append)
    image, text = (ImageTower(str(towers[0]), CPU), TextTower(str(towers[1]), CPU))
    changed = compute(
        shards[:1], image, text, folder / "features", settings_for(towers).read, told.append
    )
    assert changed.paths[0] in before


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


def test_features_are_those_of_the_towers(features, towers, pairs):
    image, text = ImageTower(str(towers[0]), CPU), TextTower(str(towers[1]), CPU)
    shard = list_shards([str(pairs / "p-00000.tar")], None)[0]
    sample = next(iter(read_samples(shard, ReadSettings())))
    pair = next(stream(features[:1]))
    seen = image([image.preprocess(decode(sample.picture, DecodeSettings(), image.side).image)])
    told = text(sample.captions)
    assert torch.allclose(pair.image.float(), seen.pooled[0], atol=2e-3)
    assert torch.allclose(pair.patches.float(), seen.tokens[0], atol=2e-3)
    assert torch.allclose(pair.text.float(), told.pooled, atol=2e-3)
    assert pair.ids == told.ids and len(pair.ids) == len(PHRASES)
    words, mask = words_of([pair], [1])
    assert mask.sum() == told.mask[1].sum()
    assert torch.allclose(words[mask], told.tokens[1][told.mask[1]], atol=2e-3)


def config_of(trained, **changed):
    told = json.loads((trained[0] / "settings.json").read_text())["config"]
    return TwoTowerConfig.from_json({**told, "fusion": None, **changed})


def test_with_every_picture_a_landmark_it_is_kernel_ridge_as_the_books_have_it(
    trained, features, tmp_path
):
    """Nystroem with M = N is exact: (K'K + lK)^-1 K'Y = (K + lI)^-1 Y."""
    count = sum(1 for _ in stream(features))
    network = prepared_of(config_of(trained, landmarks=count), features, tmp_path, True).eval()
    solving.solve(network, features, tmp_path, every_sample=True)
    pairs = list(stream(features, expanded=tmp_path))
    x = network.rooted(images_of(pairs)).double()
    mean, spread = x.mean(0), x.std(0, correction=0) + preparing.FLOOR
    z = torch.nn.functional.normalize((x - mean) / spread, dim=-1)
    kernel = torch.exp(network.config.sharpness * (z @ z.T - 1))
    with torch.inference_mode():
        vectors = torch.stack([network.heads.texts(p.text.float()).mean(0) for p in pairs])
        held = torch.stack([network.held(p.ids).mean(0) for p in pairs])
        target = torch.cat([vectors, held], dim=1).double()
        books = torch.linalg.solve(
            kernel + solving.RIDGE * torch.eye(count), target - target.mean(0)
        )
        ours = network.kernel(x.float()).double()
        solved = torch.cat([network.kernel.vectors, network.kernel.shares], dim=1).double()
        assert torch.allclose(ours @ solved, kernel @ books, atol=5e-3)
    assert torch.allclose(network.usual.double(), target.mean(0)[network.config.dim :], atol=1e-5)


def test_landmarks_are_drawn_evenly_from_all(trained, features, tmp_path):
    pairs = list(stream(features))
    config = config_of(trained, landmarks=30, text_landmarks=40)
    network = prepared_of(config, features, tmp_path, True)
    z = network.kernel.standard(network.rooted(images_of(pairs)))
    alike = network.kernel.landmarks @ z.T
    places = preparing.drawn(len(pairs), 30)
    assert (alike[torch.arange(30), places] > 1 - 1e-5).all()
    assert len(set(places)) == 30 and places == sorted(places)
    thirds = np.bincount([place * 3 // len(pairs) for place in places], minlength=3)
    assert thirds.min() >= 4
    assert preparing.drawn(3, 30) == [0, 1, 2]
    own = torch.nn.functional.normalize(torch.cat([p.text for p in pairs]).float(), dim=-1)
    texts = preparing.drawn(len(own), 40)
    assert torch.allclose(network.expansion.landmarks, own[texts])


@pytest.mark.parametrize("every_sample", [False, True])
def test_captions_are_expanded_by_what_was_solved_without_them(
    trained, features, tmp_path, every_sample
):
    """By the books, in float64 and part by part: ridge from a caption to the mean of the others."""
    network = prepared_of(config_of(trained, text_landmarks=25), features, tmp_path, every_sample)
    pairs = list(stream(features))
    expanded = list(stream(features, expanded=tmp_path))
    unit = lambda y: torch.nn.functional.normalize(y, dim=-1)  # noqa: E731
    own = [unit(pair.text.double()) for pair in pairs]
    others = [unit(each.sum(0) - each) for each in own]
    landmarks = network.expansion.landmarks.double()
    among = torch.exp(SHARPNESS * (landmarks @ landmarks.T - 1))
    kernels = [torch.exp(SHARPNESS * (each @ landmarks.T - 1)) for each in own]
    held = [unit((network.held(pair.ids) * network.expansion.rarity).double()) for pair in pairs]
    learned = [every_sample or not pair.held_out for pair in pairs]
    mean = torch.cat([o for o, yes in zip(others, learned, strict=True) if yes]).mean(0)
    parts = [pair.part if yes else None for pair, yes in zip(pairs, learned, strict=True)]
    assert {part for part in parts if part is not None} == set(range(PARTS))
    assert (None in parts) != every_sample
    ours_of = lambda pair: network.expansion(pair.text.float(), network.held(pair.ids))  # noqa: E731
    apart = []
    for without in {*parts, None}:
        rows = [i for i, yes in enumerate(learned) if yes and pairs[i].part != without]
        y = torch.cat([others[i] for i in rows]) - mean
        k, b = torch.cat([kernels[i] for i in rows]), torch.cat([held[i] for i in rows])
        left = k.T @ k + preparing.KERNEL_RIDGE * among + 1e-4 * torch.eye(25)
        meaning = torch.linalg.solve(left, k.T @ y)
        words = torch.linalg.solve(b.T @ b + preparing.WORD_RIDGE * torch.eye(b.shape[1]), b.T @ y)
        for i in [i for i, part in enumerate(parts) if part == without]:
            more = FROM_MEANING * unit(kernels[i] @ meaning) + FROM_WORDS * unit(held[i] @ words)
            assert torch.allclose(expanded[i].text.double(), unit(own[i] + more), atol=8e-3)
            apart.append(ours_of(pairs[i]).double() - expanded[i].text.double())
        if without is None:
            pair = pairs[0]
            more = FROM_MEANING * unit(kernels[0] @ meaning) + FROM_WORDS * unit(held[0] @ words)
            assert torch.allclose(ours_of(pair).double(), unit(own[0] + more), atol=8e-3)
            (alone,) = preparing.expand(network, [pair])
            assert torch.equal(alone.text, ours_of(pair))
    # What was solved with a caption would have expanded it otherwise.
    assert torch.cat(apart).abs().max() > 0.01


def test_expanded_captions_follow_their_pairs_into_any_order(features, tmp_path):
    for path in features:
        texts = [torch.full((len(p.text), 3), float(p.image[0])) for p in stream([path])]
        save_expanded(tmp_path, path, texts)
    shuffled = list(stream(features, seed=4, expanded=tmp_path))
    assert len(shuffled) == 360
    for pair in shuffled:
        assert pair.text.shape == (len(PHRASES), 3)
        assert (pair.text == pair.image[0].half()).all()


def test_a_preparation_that_is_there_is_taken(trained, features, tmp_path):
    first = prepared_of(config_of(trained), features, tmp_path, True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == len(features) + 1
    second = prepared_of(config_of(trained), features, tmp_path, True)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for (name, ours), (_, theirs) in zip(
        first.named_parameters(), second.named_parameters(), strict=True
    ):
        assert ours.requires_grad or torch.equal(ours, theirs), name


def test_what_pads_on_the_left_is_read_as_what_pads_on_the_right(towers):
    right, left = (TextTower(str(towers[1]), CPU) for _ in range(2))
    left._network.tokenizer.padding_side = "left"
    texts = ["red", "a picture of red beside pink"]
    ours, theirs = right(texts), left(texts)
    assert torch.equal(ours.mask, theirs.mask) and ours.mask[0].sum() < ours.mask[1].sum()
    assert ours.ids == theirs.ids
    assert theirs.tokens.shape == ours.tokens.shape


def test_evidence_speaks_for_what_is_there(trained, features):
    """The words of a picture's own colours are likelier of it than of any."""
    folder, _ = trained
    encoder = load_encoder(f"two-tower:{folder}", CPU)
    text = encoder._text
    rng = random.Random(5)
    pixels = [encoder.preprocess(tiny_towers.picture("red", "blue", rng))]
    with torch.inference_mode():
        seen = encoder._network.seen(encoder._closer(pixels)[0])
    there, absent = seen.there, seen.absent
    place = {word: i for i, word in enumerate(encoder._network.word_ids.tolist())}
    lift = {c: float(there[0, place[text([c]).ids[0][0]]]) for c in COLOURS}
    assert min(lift["red"], lift["blue"]) > max(
        v for c, v in lift.items() if c not in ("red", "blue")
    )
    missing = {c: float(absent[0, place[text([c]).ids[0][0]]]) for c in COLOURS}
    assert max(missing["red"], missing["blue"]) < 0 < min(missing["pink"], missing["white"])


def test_a_closer_look_is_of_the_mirror_image_and_the_middle_too(towers):
    tower = ImageTower(str(towers[0]), CPU)
    rng = random.Random(3)
    side = tower.side
    pixels = [tower.preprocess(tiny_towers.picture("red", c, rng)) for c in ("blue", "pink")]
    whole = tower(pixels).pooled
    mirrored = tower([np.ascontiguousarray(each[:, :, ::-1]) for each in pixels]).pooled
    box = (side / 9, side / 9, side * 8 / 9, side * 8 / 9)
    images = [Image.fromarray(np.ascontiguousarray(each.transpose(1, 2, 0))) for each in pixels]
    larger = [image.resize((side, side), tower._resample, box) for image in images]
    middle = tower([np.asarray(each).transpose(2, 0, 1).copy() for each in larger]).pooled
    assert not torch.allclose(whole, mirrored, atol=1e-3)
    assert not torch.allclose(whole, middle, atol=1e-3)
    close = tower.closely(pixels, whole)
    assert torch.allclose(close, (whole + mirrored + middle) / 3, atol=1e-6)
    assert tower.closely([], whole[:0]).shape == (0, tower.width)


def test_weights_are_where_the_slope_is_nothing_or_at_zero():
    """Of the conditional logit, by autograd; the third trait tells against what is chosen."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(300, 6, 3)))
    utility = (x @ torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)).numpy()
    chosen = (utility + rng.gumbel(size=utility.shape)).argmax(1)
    for row, place in enumerate(chosen):
        x[row, [0, place]] = x[row, [place, 0]]
    weights = solving.first_of_list(x, ridge=0.0).requires_grad_()
    loss = -(x @ weights).log_softmax(1)[:, 0].mean()
    (slope,) = torch.autograd.grad(loss, weights)
    assert weights[2] == 0 and slope[2] > 0  # held at nothing: it would go below
    assert slope[:2].abs().max() < 1e-9
    assert weights[1] > 1.5 * weights[0] > 0


def test_log_odds_are_those_of_the_scores():
    """Of two normal distributions the log odds are a line that is known."""
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(3, 2, 40000), rng.normal(-1, 2, 10000)
    scores = torch.from_numpy(np.concatenate([right, wrong]))
    bias, stretch = solving.logistic(scores, torch.arange(50000) < 40000)
    # log N(x; 3, 2) - log N(x; -1, 2) = ((x + 1)^2 - (x - 3)^2) / 8 = x - 1
    assert bias == pytest.approx(-1, abs=0.05) and stretch == pytest.approx(1, abs=0.05)


def test_a_fusion_has_to_win_by_more_than_chance():
    answers = lambda won, lost: (  # noqa: E731
        torch.tensor([True] * won + [False] * lost + [True] * 50),
        torch.tensor([False] * won + [True] * lost + [True] * 50),
    )
    assert better(*answers(30, 10))
    assert not better(*answers(11, 10))
    assert not better(*answers(0, 0))
    assert not better(*answers(10, 30))


def test_with_one_caption_a_picture_the_mean_ships(towers, tmp_path):
    tiny_towers.make_pairs(tmp_path / "one" / "p.tar", 150, 0, captions=1)
    shards = list_shards([str(tmp_path / "one")], None)
    report = train_two_tower(settings_for(towers), shards, tmp_path / "to", lambda line: None)
    assert report["queries"] == 0 and "fusion" not in report
    encoder = load_encoder(f"two-tower:{tmp_path / 'to'}", CPU)
    assert encoder.preprocessing["joint"] == "mean, text 0.5"


def test_any_vision_tower_will_do(tmp_path, towers):
    """CLIP's, asked for by the whole CLIP: its vision tower is taken."""
    clip = clip_folder(
        tmp_path / "clip", side=32, width=24, vision={"patch_size": 8},
        tower={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
               "num_attention_heads": 2},
    )  # fmt: skip
    tower = ImageTower(str(clip), CPU)
    rng = random.Random(0)
    pixels = [
        tower.preprocess(tiny_towers.picture("red", c, rng)) for c in ("blue", "pink", "black")
    ]
    seen = tower(pixels)
    assert (seen.pooled.shape, seen.tokens.shape) == ((3, 32), (3, 16, 32))
    with pytest.raises(EncoderError, match="its image processor"):
        ImageTower(str(towers[1]), CPU)


def test_a_tower_that_has_changed_is_refused(trained, towers, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("features"))
    config = json.loads((folder / "config.json").read_text())
    config["text_fingerprint"] = "0" * 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="other files there"):
        load_encoder(f"two-tower:{folder}", CPU)
    (folder / "config.json").write_text("{}")
    with pytest.raises(EncoderError, match="one two-tower model"):
        load_encoder(f"two-tower:{folder}", CPU)
    with pytest.raises(EncoderError, match=r"no model\.safetensors"):
        load_encoder(f"two-tower:{tmp_path}", CPU)
    with pytest.raises(EncoderError, match="a folder after the colon"):
        load_encoder("two-tower", CPU)


@pytest.mark.timeout(300)
def test_from_shards_to_answers_at_the_prompt(chiasm, towers, pairs, tmp_path):
    image, text = towers
    made = chiasm(
        "train", "--preset", "two-tower", "--image-encoder", image, "--text-encoder", text, pairs,
        "--to", tmp_path / "mine", "--steps", 20, "--device", "cpu", "--precision", "float32",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "pictures held out" in made.stdout
    assert made.stdout.endswith(f"use it with --encoder two-tower:{tmp_path / 'mine'}\n")
    with Image.open(tmp_path / "mine" / "curves.png") as curves:
        assert curves.format == "PNG" and len(curves.convert("L").getcolors() or []) > 10
    collection = tmp_path / "c"
    for command in (
        ("embed", pairs / "p-00000.tar", "--to", collection,
         "--encoder", f"two-tower:{tmp_path / 'mine'}"),
        ("index", "build", collection),
    ):  # fmt: skip
        ran = chiasm(*command)
        assert ran.returncode == 0, ran.stderr
    asked = chiasm("search", collection, "red and blue", "--rerank", "match:20", "--json", "-k", 3)
    assert asked.returncode == 0, asked.stderr
    first = json.loads(asked.stdout)["results"][0]
    assert set(first["scores"]) == {"search", "match"}


def test_what_two_towers_lack_is_told_in_one_line(chiasm, tmp_path, pairs, towers):
    for options, told in (
        (("--preset", "two-tower", "--to", tmp_path / "x"), "expected --image-encoder DIR"),
        (("--preset", "pocket", "--to", tmp_path / "x", pairs), "SHARDS: expected nothing"),
        (
            ("--preset", "two-tower", "--to", tmp_path / "x", pairs, "--towers", tmp_path,
             "--image-encoder", towers[0], "--text-encoder", towers[1]),
            "--towers: expected nothing",
        ),
        (
            ("--preset", "two-tower", "--to", tmp_path / "x", pairs,
             "--image-encoder", tmp_path / "nowhere", "--text-encoder", towers[1]),
            "no such folder",
        ),
    ):  # fmt: skip
        ran = chiasm("train", *options)
        assert ran.returncode in (1, 2) and told in ran.stderr, ran.stderr
        assert "Traceback" not in ran.stderr
