"""Two frozen towers and what is learned on them: features, heads, kernels, evidence, the choice."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny_towers
import torch
from encoding import encode_images, encode_joint, encode_texts, match_rows, mean_of, preprocess
from PIL import Image
from tiny_towers import COLOURS, PHRASES

from chiasm.index import build_index, open_collection
from chiasm.jobs.cli.train_two_tower import format_report
from chiasm.jobs.cli.train_two_tower import train_two_tower as train_command
from chiasm.pipeline.encoders import load_encoder, require_matcher
from chiasm.pipeline.errors import ChiasmError, EncoderError, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.model.checkpoint import SHIPPED
from chiasm.pipeline.model.config import FusionConfig
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from chiasm.pipeline.training.curves import figure_of
from chiasm.pipeline.training.log import read_log
from chiasm.pipeline.training.progress_lines import format_progress
from chiasm.pipeline.training.two_tower import select as judging
from chiasm.pipeline.training.two_tower.closed_form import fit_match_weights, solve
from chiasm.pipeline.training.two_tower.features import FeatureSettings, compute
from chiasm.pipeline.training.two_tower.held_out import held_out
from chiasm.pipeline.training.two_tower.loop import TwoTowerSettings, format_recall, train_two_tower
from chiasm.pipeline.training.two_tower.prepare import prepare, survey
from chiasm.pipeline.training.two_tower.stream import (
    augmented_of,
    ids_of,
    images_of,
    patches_of,
    stream,
    texts_of,
    words_of,
)
from chiasm.pipeline.training.two_tower.trainer import TrainSettings, train
from chiasm.pipeline.two_tower.checkpoint import config_from_json, load_two_tower, save_two_tower
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower
from chiasm.pipeline.two_tower.network import TwoTowerNetwork

CPU = EncoderSettings(device="cpu", precision="float32")
SHORT = TrainSettings(steps=40, fusion_steps=20, batch=64, warmup=5, checkpoint_every=15)
TINY = FusionConfig(fusion="gated", width=32, depth=1, heads=2, slots=4)


def settings_for(towers, train=SHORT, fusion=TINY):
    image, text = towers
    return TwoTowerSettings(str(image), str(text), fusion=fusion, train=train, encoder=CPU)


@pytest.fixture(scope="module")
def trained(towers, coloured, tmp_path_factory):
    """A training to its end: its folder and its report; who trains on takes a copy."""
    folder = tmp_path_factory.mktemp("trained")
    shards = list_shards([str(coloured)], None)
    return folder, train_two_tower(settings_for(towers), shards, folder, lambda line: None)


@pytest.fixture(scope="module")
def features(trained):
    return sorted((trained[0] / "features").glob("*.tar"))


def test_it_learns_to_find_and_tells_so_of_samples_held_out(trained):
    folder, report = trained
    assert report == json.loads((folder / "report.json").read_text())
    assert (report["pairs"], report["lost"], report["damaged"]) == (360, {}, [])
    held_out = report["held_out"]
    assert 20 <= held_out <= 60 and report["queries"] == 2 * held_out
    assert report["captions"] == 3 * held_out and report["text_to_image"]["r5"] > 0.7
    # 56 ordered pairs of colours: of some 36 pictures a few have twins, and no query can tell.
    assert report["image"]["r5"] > 0.7
    assert report["mean"]["r1"] >= report["image"]["r1"]
    assert report["matching"]["r1_after"] > 0.5


def test_a_training_tells_what_it_found_how_it_goes_and_what_it_keeps(trained):
    folder, _ = trained
    records = read_log(folder)
    assert {record["stage"] for record in records} == {"choosing", "all-samples"}
    for record in records:
        assert record["total"] == 40 and {"seconds_per_step", "seconds_left"} <= record.keys()
        assert ("held_out_r1" in record) == (record["stage"] == "choosing")
        assert format_progress(record).startswith(f"{record['stage']}  step {record['step']} of 40")
    assert max(record.get("held_out_r1", 0) for record in records) > 0.2
    assert figure_of(records).axes[-1].get_title() == "R@1 on held-out samples"
    assert (folder / "curves.png").exists()


def test_the_folder_is_an_encoder_that_finds_and_matches(trained):
    folder, report = trained
    encoder = require_matcher(load_encoder(f"two-tower:{folder}", CPU))
    rng = random.Random(99)
    colours = [("red", "blue"), ("green", "white"), ("yellow", "black"), ("pink", "green")]
    pixels = [preprocess(encoder, tiny_towers.picture(*each, rng)) for each in colours]
    texts = [PHRASES[0].format(*each) for each in colours]
    image, text = encode_images(encoder, pixels), encode_texts(encoder, texts)
    assert image.shape == text.shape == (4, encoder.dims["joint"]) and image.dtype == np.float32
    assert np.allclose(np.linalg.norm(image, axis=1), 1, atol=1e-5)
    assert ((text @ image.T).argmax(1) == np.arange(4)).all()
    joint = encode_joint(encoder, pixels, texts)
    assert np.allclose(np.linalg.norm(joint, axis=1), 1, atol=1e-5)
    assert not image[:, -1].any() and not text[:, -1].any()
    assert not report["fusion_ships"]
    network, mean = encoder._network, mean_of(image, text)
    for power in (0.0, 0.5):
        network.config = replace(network.config, hubness_power=power)
        joint = encode_joint(encoder, pixels, texts)
        length = np.linalg.norm(joint[:, :-1], axis=1)
        assert np.allclose(joint[:, :-1], length[:, None] * mean[:, :-1], atol=1e-5)
        assert (joint[:, -1] > 0.01).any() if power else not joint[:, -1].any()
    crossed = [(i, j) for i in range(4) for j in range(4)]
    logits = match_rows(encoder, [pixels[i] for i, _ in crossed], [texts[j] for _, j in crossed])
    assert (logits.reshape(4, 4).argmax(1) == np.arange(4)).all()
    alone = [match_rows(encoder, [pixels[i]], [texts[j]])[0] for i, j in crossed]
    assert np.allclose(logits, alone, atol=1e-3)
    assert (
        encode_images(encoder, []).shape
        == encode_texts(encoder, []).shape
        == (0, encoder.dims["joint"])
    )
    assert match_rows(encoder, [], []).shape == (0,)


def test_a_fusion_that_ships_fuses_by_tokens(trained, towers, coloured, tmp_path):
    """Saved with a fusion, the encoder's joint vectors are those of the network on features."""
    folder, _ = trained
    fused = tmp_path / "fused"
    shutil.copytree(folder, fused, ignore=shutil.ignore_patterns("model.safetensors"))
    selected = json.loads((fused / "selection.json").read_text())
    (fused / "selection.json").write_text(json.dumps({**selected, "fusion": True}))
    (fused / "all-samples.safetensors").unlink(missing_ok=True)  # learned without the fusion
    train_two_tower(settings_for(towers), list_shards([str(coloured)], None), fused, lambda _: None)
    encoder = load_encoder(f"two-tower:{fused}", CPU)
    assert encoder.preprocessing["joint"] == "learned fusion"
    words = [f"red {'and ' * more}blue" for more in (0, 20, 21, 40)]  # and two special tokens
    assert encoder.encode("text", words).tokens_cut.tolist() == [0, 0, 1, 20]
    alone = load_encoder(f"two-tower:{folder}", CPU)  # whose joint vector is a mean of whole texts
    assert alone.encode("text", words).tokens_cut.tolist() == [0, 0, 0, 12]
    rng = random.Random(7)
    pixels = [preprocess(encoder, tiny_towers.picture("red", c, rng)) for c in ("blue", "pink")]
    texts = ["red and blue", "a picture of red beside pink"]
    together = encode_joint(encoder, pixels, texts)
    apart = [encode_joint(encoder, pixels[i : i + 1], texts[i : i + 1]) for i in range(2)]
    assert np.allclose(together, np.concatenate(apart), atol=1e-5)
    network = encoder._network
    network.config = replace(network.config, hubness_power=0.0)
    seen, said = encoder._image(pixels), encoder._text(texts)
    with torch.inference_mode():
        v = network.image_vectors(seen.pooled)
        t = network.text_vectors(said.pooled, network.bag_of_words(said.ids))
        joint = network.fuse(
            network.text_modality(said.tokens, said.mask, t), network.image_modality(seen.tokens, v)
        )
        mean = network.mean(t, v)
    alone = encode_joint(encoder, pixels, texts)[:, :-1]
    assert np.allclose(alone, joint.numpy(), atol=1e-5)
    assert not np.allclose(alone, mean.numpy(), atol=1e-3)


@pytest.mark.parametrize("killed_at, goes_on_from", [(17, 15), (33, 30)])  # the fusion's from 20
def test_killed_and_started_again_it_ends_with_the_same_weights(
    trained, features, tmp_path, killed_at, goes_on_from
):
    config = config_of(trained)
    straight = learned(features, config, tmp_path / "straight")
    again = learned(features, config, tmp_path / "again")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in straight.state_dict().items())

    class Killed(Exception):
        pass

    def killed(training, losses):
        if training.step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        learned(features, config, tmp_path / "resumed", killed)
    steps = []
    resumed = learned(features, config, tmp_path / "resumed", lambda t, _: steps.append(t.step))
    assert steps == list(range(goes_on_from + 1, 41))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def config_of(trained):
    record = json.loads((trained[0] / "settings.json").read_text())
    return config_from_json(record["config"])


def learned(features, config, checkpoint, on_step=lambda training, losses: None, settings=SHORT):
    expanded = checkpoint.parent / "expanded"
    prepared = prepare(
        config, features, survey(features), expanded, every_sample=False,
        device=torch.device("cpu"),
    )  # fmt: skip
    return train(
        features, prepared, settings, expanded=expanded, every_sample=False, checkpoint=checkpoint,
        on_step=on_step,
    )  # fmt: skip


def test_a_fusion_moves_nothing_but_itself_and_that_in_its_steps_alone(trained, features, tmp_path):
    terms = {}
    config = config_of(trained)
    fused = learned(
        features, config, tmp_path / "fused", lambda t, losses: terms.setdefault(t.step, losses)
    ).state_dict()
    alone = learned(features, replace(config, fusion=None), tmp_path / "alone").state_dict()
    moving = {name for name in fused if name.startswith("fusion.")}
    assert fused.keys() - alone.keys() == moving and moving
    for name, value in alone.items():
        assert torch.equal(value, fused[name]), name
    assert [step for step, losses in terms.items() if "joint" in losses] == list(range(21, 41))
    never = replace(SHORT, fusion_steps=0)
    unmoved = learned(features, config, tmp_path / "never", settings=never).state_dict()
    assert any(not torch.equal(unmoved[name], fused[name]) for name in moving)
    torch.manual_seed(SHORT.seed)
    begun = TwoTowerNetwork(config, SHORT.dropout, SHORT.token_dropout).state_dict()
    for name in moving:
        assert torch.equal(unmoved[name], begun[name]), name


def test_what_is_saved_is_what_was_learned(trained, features, tmp_path):
    network = learned(features, config_of(trained), tmp_path / "state").eval()
    expanded = tmp_path / "expanded"
    solve(network, features, survey(features), expanded, every_sample=False)
    fit_match_weights(
        network, [pair for pair in stream(features, expanded=expanded) if pair.held_out]
    )
    assert network.match_weights[1:].min() >= 0 and network.match_weights[1:].max() > 0
    save_two_tower(tmp_path / "saved", network)
    loaded = load_two_tower(tmp_path / "saved")
    pairs = [pair for pair in stream(features) if pair.held_out]
    with torch.inference_mode():
        for ours, theirs in zip(gallery_of(network, pairs), gallery_of(loaded, pairs), strict=True):
            assert ((ours * theirs).sum(-1) > 0.9999).all()
        bags = network.bag_of_words([pair.ids[0] for pair in pairs])
        logits = [
            each.match_logits(
                each.match_features(texts, bags, each.image_evidence(augmented_of(pairs)))
            )
            for each in (network, loaded)
            for texts in [gallery_of(each, pairs)[1][:: len(PHRASES)]]
        ]
        assert torch.allclose(*logits, atol=0.05) and logits[0].std() > 1


def gallery_of(network, pairs):
    images = network.image_vectors(images_of(pairs))
    texts = network.text_vectors(texts_of(pairs), network.bag_of_words(ids_of(pairs)))
    words, mask = words_of(pairs, [0] * len(pairs))
    first = texts[:: len(PHRASES)]
    said = network.text_modality(words, mask, first)
    joint = network.fuse(said, network.image_modality(patches_of(pairs), images))
    return images, texts, joint


def test_pairs_match_as_they_were_judged(trained, features, coloured):
    """The encoder, from pictures and strings, against the network on cached features."""
    encoder = load_encoder(f"two-tower:{trained[0]}", CPU)
    network = encoder._network
    samples = [
        sample
        for shard in list_shards([str(coloured)], None)
        for sample in read_samples(shard, ReadSettings())
        if held_out(hashlib.sha256(sample.picture).hexdigest())
    ]
    held_out_pairs = [pair for pair in stream(features) if pair.held_out]
    pixels = [
        preprocess(
            encoder, decode(s.picture, DecodeSettings(), encoder.modalities["image"].side).image
        )
        for s in samples
    ]
    captions = [sample.captions[1] for sample in samples]
    with torch.inference_mode():
        ids = [pair.ids[1] for pair in held_out_pairs]
        vectors = network.text_vectors(
            torch.stack([pair.text[1] for pair in held_out_pairs]).float(),
            network.bag_of_words(ids),
        )
        traits = network.match_features(
            vectors, network.bag_of_words(ids), network.image_evidence(augmented_of(held_out_pairs))
        )
        logits = network.match_logits(traits).numpy()
    assert len(samples) == len(held_out_pairs) > 20
    ours = match_rows(encoder, pixels, captions)
    assert np.allclose(ours, logits.diagonal(), atol=0.05)
    wrong = match_rows(encoder, pixels[1:] + pixels[:1], captions)
    assert np.allclose(wrong, np.roll(logits, -1, axis=1).diagonal(), atol=0.05)
    assert np.ptp(logits) > 2


def test_matching_is_judged_by_what_the_other_half_says_it_weighs(trained, features, monkeypatch):
    network = load_two_tower(trained[0])
    expanded = trained[0] / "expanded" / "choosing"
    pairs = [pair for pair in stream(features, expanded=expanded) if pair.held_out]
    halves, queries = [], []

    def weigh(network, half):
        halves.append({id(pair) for pair in half})
        fit_match_weights(network, half)

    def match_features(text, bag, image):
        if len(text) == 1:  # of a query; match weights are fitted on all captions of a picture
            queries.append((len(halves) - 1, text[0]))
        return type(network).match_features(network, text, bag, image)

    with torch.inference_mode():
        gallery = judging.gallery(network, pairs)
        with monkeypatch.context() as patched:
            patched.setattr(judging, "fit_match_weights", weigh)
            patched.setattr(network, "match_features", match_features)
            found = judging.rerank(network, pairs, gallery)
        chosen = (gallery.captions @ gallery.image.T).argmax(1)
    said, own = gallery.captions, gallery.caption_rows
    assert len(queries) == len(said)
    for half, text in queries:
        rows = own[(said == text).all(1)].tolist()
        assert any(id(pairs[row]) not in halves[half] for row in rows)
    assert found["r1_before"] == round(float((chosen == own).float().mean()), 4)
    assert halves[0] | halves[1] == {id(pair) for pair in pairs} and not halves[0] & halves[1]


def test_the_recall_of_the_selection_is_one_readable_line():
    figures = {"held_out": 1200, "queries": 9}
    shares = (("text_to_image", 0.4), ("image", 0.5), ("text", 0.25), ("mean", 1))
    figures |= {name: {"r1": share} for name, share in shares}
    own = "R@1 on 1,200 held-out pictures: a picture by its own captions 0.400"
    assert format_recall(figures) == (
        f"{own}; by other captions than the first: image 0.500, text 0.250, mean 1.000"
    )
    assert format_recall(figures | {"queries": 0}) == own


def test_the_report_names_each_vector_and_what_ships(trained):
    _, report = trained
    *_, image, text, mean, best, fusion, ships = format_report(report)
    for line, name, label in (
        (image, "image", "the picture"), (text, "text", "its first caption"),
        (mean, "mean", "both, even mean"), (best, "best_mean", "both, best weighted mean"),
        (fusion, "fusion", "both, learned fusion"),
    ):  # fmt: skip
        assert re.fullmatch(rf"    {label}  +R@1 {report[name]['r1']:.3f} .*", line), line
    refused = "the fusion does not beat the best weighted mean for certain: the even mean ships"
    assert ships == refused
    assert format_report(report | {"fusion_ships": True})[-1] == (
        "the fusion beats the best weighted mean and ships"
    )


def test_features_are_computed_once_and_again_where_something_changed(
    trained, towers, coloured, tmp_path
):
    folder = shutil.copytree(trained[0], tmp_path / "trained")  # times of its files and all
    before = {path: path.stat().st_mtime_ns for path in (folder / "features").glob("*.tar")}
    assert len(before) == 3
    left, young, foreign = (
        folder / "features" / name
        for name in (".x.tar.~0a0a0a0a.tmp", ".y.tar.~0a0a0a0a.tmp", ".notes.txt~1.tmp")
    )
    for path in (left, young, foreign):
        path.write_bytes(b"half")
    for path in (left, foreign):
        os.utime(path, (0, 0))
    messages = []
    shards = list_shards([str(coloured)], None)
    assert train_two_tower(settings_for(towers), shards, folder, messages.append)["mean"]
    assert {path: path.stat().st_mtime_ns for path in (folder / "features").glob("*.tar")} == before
    assert sorted((folder / "features").glob(".*")) == [foreign, young]
    found, kept = messages  # nothing was computed, trained or selected again
    assert found == {"message": "found 360 pictures, 3.0 captions each"}
    for name in ("features", "expanded", "choosing.safetensors", "all-samples.safetensors"):
        assert f"{name} (" in kept["message"]
    with pytest.raises(UsageError, match=r"found shards\.p-00001-\w+ none, shards\.p-00002"):
        train_two_tower(settings_for(towers), shards[:1], folder, messages.append)
    image, text = (ImageTower(str(towers[0]), CPU), TextTower(str(towers[1]), CPU))
    features = FeatureSettings(tokens=True)
    changed = compute(shards[:1], image, text, folder / "features", features, messages.append)
    assert changed.paths[0] in before


def test_evidence_speaks_for_what_is_there(trained):
    """Over pictures of every two colours the words of a picture's own colours are likelier of it
    than of any, and those of others are not; 40 steps teach no more."""
    folder, _ = trained
    encoder = load_encoder(f"two-tower:{folder}", CPU)
    network, rng = encoder._network, random.Random(5)
    both = list(itertools.combinations(COLOURS, 2))
    pixels = [preprocess(encoder, tiny_towers.picture(*colours, rng)) for colours in both]
    with torch.inference_mode():
        seen = network.image_evidence(encoder._augmented(pixels))
    place = {word: i for i, word in enumerate(network.word_ids.tolist())}
    columns = [place[encoder._text([colour]).ids[0][0]] for colour in COLOURS]
    own = torch.tensor([[colour in colours for colour in COLOURS] for colours in both])
    present, absent = seen.present[:, columns], seen.absent[:, columns]
    assert present[own].mean() > 0.1 > 0 > present[~own].mean()
    assert absent[own].mean() < 0 < absent[~own].mean()


def test_the_network_of_words_predicts_them(trained, features):
    network = load_two_tower(trained[0])
    pairs = [pair for pair in stream(features) if pair.held_out]
    with torch.inference_mode():
        x = network.sqrt_features(images_of(pairs))
        present = network.bag_of_words(ids_of(pairs))[:: len(PHRASES)] > 0
        some = network.word_prior < 0.3  # colours: other words are of one phrase in three, or all
        assert some.sum() == len(COLOURS)
        shares = network.word_classifier(network.kernel.standardised(x)).sigmoid()
        lifts = (shares / network.word_prior)[:, some]
        assert lifts[present[:, some]].mean() > 1.2 * lifts[~present[:, some]].mean()


def test_with_one_caption_a_picture_is_found_by_its_own(towers, tmp_path):
    tiny_towers.make_pairs(tmp_path / "one" / "p.tar", 150, 0, captions=1)
    shards = list_shards([str(tmp_path / "one")], None)
    messages = []
    report = train_two_tower(settings_for(towers), shards, tmp_path / "to", messages.append)
    assert report["queries"] == 0 and "fusion" not in report and "mean" not in report
    assert report["captions"] == report["held_out"] > 5
    assert report["text_to_image"]["r5"] > 0.6 and report["matching"]["r1_after"] > 0.3
    own = f"a picture by its own captions {report['text_to_image']['r1']:.3f}"
    assert any(line.get("message", "").endswith(own) for line in messages)
    assert "a picture by its own captions" in "\n".join(format_report(report))
    encoder = load_encoder(f"two-tower:{tmp_path / 'to'}", CPU)
    assert encoder.preprocessing["joint"] == "mean, text 0.5"


def test_with_a_text_model_without_words_likeness_alone_is_weighed(towers, coloured, tmp_path):
    text = tiny_towers.static_text_folder(tmp_path / "text")
    settings = settings_for((towers[0], text), replace(SHORT, steps=20, fusion_steps=10))
    shards = list_shards([str(coloured)], None)
    report = train_two_tower(settings, shards, tmp_path / "to", lambda line: None)
    assert report["image"]["r10"] > 0.6
    encoder = require_matcher(load_encoder(f"two-tower:{tmp_path / 'to'}", CPU))
    assert encoder._network.config.words == 0
    rng = random.Random(3)
    pixels = [preprocess(encoder, tiny_towers.picture("red", "blue", rng))] * 2
    right, wrong = match_rows(encoder, pixels, ["red and blue", "green and white"])
    assert np.isfinite([right, wrong]).all() and right > wrong


def test_a_tower_that_has_changed_is_refused(trained, towers, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("features"))
    config = json.loads((folder / "config.json").read_text())
    config["text_fingerprint"] = "0" * 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="other files there"):
        load_encoder(f"two-tower:{folder}", CPU)
    for text in ("3", '"x"', "null", "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(EncoderError, match="copy the folder again"):
            load_encoder(f"two-tower:{folder}", CPU)
    (folder / "config.json").write_text("{}")
    with pytest.raises(EncoderError, match="train again"):
        load_encoder(f"two-tower:{folder}", CPU)
    with pytest.raises(
        EncoderError, match=rf"load it as an encoder: pocket:{re.escape(str(SHIPPED))}$"
    ):
        load_encoder(f"two-tower:{SHIPPED}", CPU)
    with pytest.raises(EncoderError, match=r"no model\.safetensors"):
        load_encoder(f"two-tower:{tmp_path}", CPU)
    with pytest.raises(EncoderError, match="a folder after the colon"):
        load_encoder("two-tower", CPU)


def test_shards_that_are_cut_are_learned_from_and_told(towers, coloured, tmp_path, capsys):
    whole = (coloured / "p-00000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) - 30_000])
    image, text = map(str, towers)
    shards = [str(coloured), str(tmp_path / "cut.tar")]
    with pytest.raises(ChiasmError, match=r"1 of 4 shards: .* found cut or damaged cut-"):
        train_command(
            shards, tmp_path / "to", image, text, steps=2, fusion="add", device="cpu",
            precision="float32",
        )  # fmt: skip
    assert "1 samples dropped (1 truncated)" in capsys.readouterr().out
    report = json.loads((tmp_path / "to" / "report.json").read_text())
    assert len(report["damaged"]) == 1 and report["lost"] == {"truncated": 1}
    assert load_two_tower(tmp_path / "to") and (tmp_path / "to" / "curves.png").exists()


@pytest.mark.timeout(300)
def test_from_shards_to_answers(towers, coloured, tmp_path, capsys):
    image, text = map(str, towers)
    train_command(
        [str(coloured)], tmp_path / "mine", image, text, steps=20, device="cpu",
        precision="float32",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "pictures held out" in printed
    assert printed.endswith(f"use it with --encoder two-tower:{tmp_path / 'mine'}\n")
    with Image.open(tmp_path / "mine" / "curves.png") as curves:
        assert curves.format == "PNG" and len(curves.convert("L").getcolors() or []) > 10
    # At the prompt, and on Ray, tests/test_readme.py goes on from here.
    make_collection(coloured / "p-00000.tar", tmp_path / "c", f"two-tower:{tmp_path / 'mine'}")
    build_index(tmp_path / "c")
    first, *_ = open_collection(tmp_path / "c").search("red and blue", rerank="match:20", k=3)
    assert set(first.scores) == {"search", "match"}


@pytest.mark.timeout(300)
def test_what_two_towers_lack_is_told_in_one_line(chiasm, tmp_path, coloured, towers):
    for options, message in (
        (("two-tower", coloured, "--to", tmp_path / "x"), "'--image-encoder'"),
        (
            ("two-tower", "--to", tmp_path / "x", coloured, "--towers", tmp_path,
             "--image-encoder", towers[0], "--text-encoder", towers[1]),
            "No such option",
        ),
        (
            ("two-tower", "--to", tmp_path / "x", coloured,
             "--image-encoder", tmp_path / "nowhere", "--text-encoder", towers[1]),
            "no such folder",
        ),
    ):  # fmt: skip
        ran = chiasm("train", *options)
        assert ran.returncode in (1, 2) and message in ran.stderr, ran.stderr
        assert "Traceback" not in ran.stderr
