"""A recipe in one run and in several: what an earlier run has learned is kept as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_stages import RUN, learned, stopped

from chiasm.jobs.cli.train_pocket import train_settings
from chiasm.jobs.config import TrainOptions
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import load_model, load_state
from chiasm.pipeline.training.log import read_log
from chiasm.pipeline.training.pocket import loop
from chiasm.pipeline.training.pocket.data import learn_tokenizer
from chiasm.pipeline.training.pocket.state import STATE
from chiasm.pipeline.training.pocket.trainer import Training

TOWERS = replace(RUN, model=replace(RUN.model, fusion=None, decoder=None))
FUSED = replace(RUN, model=replace(RUN.model, decoder=None))
WRITING = replace(RUN, fusion_steps=0)  # on towers with a fusion, which is kept


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The recipe at once, and each of its parts on the one before."""
    folder = tmp_path_factory.mktemp("stages")
    learned(folder / "whole")
    learned(folder / "towers", TOWERS)
    learned(folder / "fused", FUSED, towers=folder / "towers")
    learned(folder / "writing", WRITING, towers=folder / "fused")
    return folder


def weights(folder):
    return load_model(folder)[0].state_dict()


def assert_same(one, other, *, but=()):
    assert one.keys() == other.keys()
    for name in (each for each in one if not each.startswith(but)):
        assert torch.equal(one[name], other[name]), name


def test_stages_in_runs_of_their_own_learn_what_one_run_learns(folders):
    whole = weights(folders / "whole")
    towers = {n: w for n, w in whole.items() if not n.startswith(("fusion", "matching", "decoder"))}
    assert_same(weights(folders / "towers"), towers)
    fused = {n: w for n, w in whole.items() if not n.startswith("decoder.")}
    assert_same(weights(folders / "fused"), fused)
    assert_same(weights(folders / "writing"), whole, but="decoder.")
    tokenizers = {load_model(each)[1].to_json() for each in folders.iterdir()}
    assert len(tokenizers) == 1
    untrained = Training(RUN, torch.device("cpu"), load_model(folders / "whole")[1]).ema.tensors
    for name in ("fusion.pool.query", "matching.bias", "decoder.embedding.weight"):
        assert not torch.equal(untrained[name], weights(folders / "writing")[name]), name
    assert {each["stage"] for each in read_log(folders / "writing")} == {"decoder"}


def test_a_decoder_is_kept_while_the_fusion_is_trained_anew(folders, tmp_path):
    run = replace(RUN, decoder_steps=0)
    stopped(tmp_path, 3, run=run, towers=folders / "writing")
    assert len(learned(tmp_path, run, towers=folders / "writing")) == 3
    assert_same(weights(tmp_path), weights(folders / "writing"))
    with pytest.raises(UsageError, match=r"expected towers \w{12}, found towers None; give --towe"):
        learned(tmp_path, replace(run, decoder_steps=0, model=FUSED.model))
    with pytest.raises(UsageError, match=r"expected towers .*; give --towers as then"):
        learned(tmp_path, run, towers=folders / "whole")  # another decoder


def test_a_decoder_on_a_fusion_that_is_kept_goes_on_after_a_kill(folders, tmp_path):
    stopped(tmp_path, 3, run=WRITING, towers=folders / "fused")
    assert load_state(tmp_path / STATE)[1]["step"] == 3
    assert len(learned(tmp_path, WRITING, towers=folders / "fused")) == 1
    assert_same(weights(tmp_path), weights(folders / "writing"))


def test_the_exact_weights_are_those_of_the_state_where_it_is_of_the_model(folders, tmp_path):
    copied = tmp_path / "model"
    copied.mkdir()
    for path in (folders / "towers").iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    run, tokenizer = FUSED, load_model(copied)[1]
    exact = load_state(copied / STATE)[0]["average.text_projection.weight"]
    found = []
    for change in (lambda: None, lambda: (copied / STATE).unlink()):
        change()
        training = Training(run, torch.device("cpu"), tokenizer)
        training.load_towers(copied)
        found.append((training.ema.tensors["text_projection.weight"], training.towers))
    assert torch.equal(found[0][0], exact) and not torch.equal(found[1][0], exact)
    assert torch.equal(found[1][0], exact.half().float())
    assert found[0][1] == found[1][1]  # a training goes on though the state has been removed since
    (copied / STATE).write_bytes((folders / "writing" / STATE).read_bytes())
    other = replace(RUN, data=replace(RUN.data, seed=4))
    learned(tmp_path / "other", replace(other, model=TOWERS.model))
    (copied / STATE).write_bytes((tmp_path / "other" / STATE).read_bytes())
    training = Training(run, torch.device("cpu"), tokenizer)
    training.load_towers(copied)  # beside the state of another model
    assert torch.equal(training.ema.tensors["text_projection.weight"], exact.half().float())


def test_a_model_has_no_part_that_has_not_begun_to_learn(tmp_path):
    for step, fusion, decoder in ((1, False, False), (3, True, False), (5, True, False)):
        stopped(tmp_path, step)
        model, _ = load_model(tmp_path)
        assert (model.fusion is not None, model.decoder is not None) == (fusion, decoder), step
    learned(tmp_path)
    assert load_model(tmp_path)[0].decoder is not None


def test_a_part_that_nothing_trains_is_refused(folders, tmp_path):
    for part in ("fusion", "decoder"):
        with pytest.raises(UsageError, match=f"^{part}_steps 0: expected steps of the {part}"):
            learned(tmp_path, replace(RUN, **{f"{part}_steps": 0}))
    with pytest.raises(UsageError, match="expected something to learn on top of them"):
        learned(tmp_path, replace(WRITING, decoder_steps=0), towers=folders / "writing")
    with pytest.raises(UsageError, match="expected towers of this preset's shapes"):
        learned(tmp_path, WRITING, towers=folders / "towers")  # without a fusion to keep
    reading = replace(RUN.model, decoder=replace(RUN.model.decoder, reads_fused=True))
    with pytest.raises(UsageError, match="expected steps of a decoder that reads the fusion"):
        learned(tmp_path, replace(RUN, decoder_steps=0, model=reading), towers=folders / "writing")
    assert not list(tmp_path.iterdir())


def test_steps_of_0_keep_what_the_towers_model_has(folders):
    settings = train_settings(TrainOptions(fusion_steps=0), folders / "fused")
    assert settings.model.fusion == FUSED.model.fusion and settings.decoder_steps > 0
    assert train_settings(TrainOptions(fusion_steps=0), folders / "towers").model.fusion is None
    kept = train_settings(TrainOptions(decoder_steps=0), folders / "writing").model
    assert (kept.decoder, kept.image_tokens) == (RUN.model.decoder, RUN.model.image_tokens)
    with pytest.raises(UsageError, match="--image-token-steps 3: expected a decoder that is train"):
        train_settings(TrainOptions(decoder_steps=0, image_token_steps=3), folders / "writing")
    assert train_settings(TrainOptions(decoder_steps=0), folders / "fused").model.decoder is None
    assert train_settings(TrainOptions(decoder_steps=0, fusion_steps=0), None).model.fusion is None
    with pytest.raises(UsageError, match="--fusion-steps 0: expected steps of fusion, where"):
        train_settings(TrainOptions(fusion_steps=0, fusion="add"), folders / "fused")


def test_a_training_goes_on_with_its_own_tokenizer_and_with_no_other(tmp_path, monkeypatch):
    stopped(tmp_path, 1)
    kept = (tmp_path / "tokenizer.json").read_text()
    monkeypatch.delattr(loop, "learn_tokenizer")  # takes seconds of a whole recipe
    (tmp_path / "tokenizer.json").write_text(learn_tokenizer(320, 21).to_json())
    with pytest.raises(
        UsageError, match=r"expected the tokenizer it was started with, \w{12}, fou"
    ):
        learned(tmp_path)
    (tmp_path / "tokenizer.json").write_text(kept)
    assert len(learned(tmp_path)) == 7
