"""Stages of a training: what each learns, how it goes on after a kill, and what stops it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.model import checkpoint
from chiasm.pipeline.model.checkpoint import load_state, save_state
from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ImageConfig,
    ModelConfig,
    TextConfig,
)
from chiasm.pipeline.training.log import is_evaluation, read_log
from chiasm.pipeline.training.pocket.data import DataSettings, learn_tokenizer, train_batch
from chiasm.pipeline.training.pocket.loop import train
from chiasm.pipeline.training.pocket.objective import Objective
from chiasm.pipeline.training.pocket.settings import TrainSettings
from chiasm.pipeline.training.pocket.stages import ends_of, stages_of
from chiasm.pipeline.training.pocket.state import STATE
from chiasm.pipeline.training.pocket.trainer import Training
from chiasm.pipeline.training.progress_lines import format_progress

TINY = ModelConfig(
    ImageConfig(side=36, stem=(8, 8), width=16, depth=1, heads=2),
    TextConfig(vocabulary=320, context=40, width=16, depth=1, heads=2),
    dim=8,
    fusion=FusionConfig(width=16, depth=1, heads=2),
    decoder=DecoderConfig(width=16, depth=1, heads=2, context=48),
)
RUN = TrainSettings(
    steps=2, fusion_steps=2, fusion_batch=6, fusion_per_joint=1, joint_rounds=1, joint_batch=8,
    decoder_steps=2, decoder_batch=3, examples={"ask": 2}, pictures={"sentiment": 1},
    learning_rate=3e-3, corpus=20,
    log_every=1, checkpoint_every=1, calibrated=4, evaluate_every=100, gallery=8,
    decoder_evaluate_every=1, decoder_gallery=4, model=TINY,
    data=DataSettings(seed=3, batch=8, side=36, context=40, world="world 2"),
)  # fmt: skip
STAGES = ("towers", "fusion", "joint", "decoder")  # of two steps each
CPU = torch.device("cpu")


class Killed(BaseException):
    pass


def learned(folder, run=RUN, **more):
    return train(run, folder, **{"device": "cpu", "precision": "float32", "workers": 0, **more})


def stopped(folder, step, failure=Killed, run=RUN, **more):
    """Train until `step` steps are done, and fail at once, before the next."""
    train_step = Training.train_step

    def mortal(self, batch):
        if self.step == step:
            raise failure
        return train_step(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(failure):
        patch.setattr(Training, "train_step", mortal)
        learned(folder, run, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing disturbed: its folder and the losses of each step."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, learned(folder)


def same_model(one, other):
    return all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in checkpoint.FILES
    )


@pytest.mark.parametrize("fusion", ["cross_attention", "add", None])
def test_each_parameter_is_learned_in_one_stage(fusion):
    config = replace(TINY, fusion=replace(TINY.fusion, fusion=fusion) if fusion else None)
    stages = stages_of(replace(RUN, model=config))
    for name, _ in Objective(config).named_parameters():
        trained_in = [stage.name for stage in stages if name.startswith(stage.trained)]
        again = ["joint"] if name == "model.fusion.residual.weight" else []
        assert trained_in[1:] == again, name
        part = name.split(".")[1]
        expected = {"image": "towers", "matching": "fusion", "decoder": "decoder"}
        assert trained_in[0] == expected.get(part, trained_in[0]), name
    assert ends_of(stages)[-1] == replace(RUN, model=config).all_steps


@pytest.mark.parametrize("step", range(1, 8))
def test_a_kill_before_any_step_of_any_stage_costs_nothing(step, whole, tmp_path):
    folder, losses = whole
    stopped(tmp_path, step)
    _, facts = load_state(tmp_path / STATE)
    stage = STAGES[step // 2]
    done = step - step % 2 if stage == "joint" else step  # what it keeps is in no state
    assert (facts["step"], facts["stage"]) == (done, stage)
    assert learned(tmp_path) == losses[done:]
    assert same_model(tmp_path, folder)
    saved, expected = (load_state(each / STATE)[0] for each in (tmp_path, folder))
    assert all(torch.equal(saved[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", checkpoint.FILES)
@pytest.mark.parametrize("step", [3, 7])
def test_a_kill_between_the_files_of_a_checkpoint_costs_nothing(step, name, whole, tmp_path):
    """Of the first checkpoint of a stage, which has parts that the config before it has not."""
    folder, _ = whole
    write, written = checkpoint.write_file, []

    def mortal(path, data):
        written.append(path.name)
        if written.count(name) == step:
            raise Killed
        write(path, data)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "write_file", mortal)
        learned(tmp_path)
    learned(tmp_path)
    assert same_model(tmp_path, folder)


def test_the_log_names_stages_with_their_ends(whole):
    records = read_log(whole[0])
    steps = [(each["stage"], each["step"], each["total"]) for each in records if "loss" in each]
    assert steps == [
        (stage, 2 * n + step, 2 * n + 2) for n, stage in enumerate(STAGES) for step in (1, 2)
    ]
    evaluations = [each for each in records if is_evaluation(each)]
    assert [each["stage"] for each in evaluations] == ["towers", "decoder", "decoder"]
    assert set(evaluations[1]["accuracy"]) == {"ask", "sentiment"}
    assert "ask 0.00 right" in format_progress(evaluations[1])


@pytest.mark.parametrize(
    ("step", "loss"), [(1, "contrast"), (3, "match"), (5, "joint"), (7, "ask")]
)
def test_a_loss_that_is_not_finite_stops_the_training_before_the_step(step, loss, whole, tmp_path):
    """From one more step of either stage than a checkpoint has; the checkpoint stays."""
    run = replace(RUN, checkpoint_every=10**6) if step > 1 else RUN
    total = Objective.forward

    def spoiled(self, losses, batch, generator):
        found = total(self, losses, batch, generator)
        if losses == Objective.joint_features:
            return found
        steps.append(len(steps))
        return found | {loss: found[loss] * math.nan} if len(steps) == step + 1 else found

    steps = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ChiasmError) as caught:
        patch.setattr(Objective, "forward", spoiled)
        learned(tmp_path, run)
    stage = STAGES[step // 2]
    assert str(caught.value) == (
        f"step {step + 1} of the training, of stage {stage}: expected finite losses and gradients, "
        f"found loss nan, {loss} nan; no weight was changed, and the last checkpoint is as it was: "
        "train in another folder with a lower --learning-rate"
    )
    saved, facts = load_state(tmp_path / STATE)
    assert facts["step"] == {1: 1, 3: 2, 5: 4, 7: 6}[step]
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert learned(tmp_path, run) == whole[1][facts["step"] :]
    assert same_model(tmp_path, whole[0])


def test_a_gradient_that_is_not_finite_stops_the_training_before_the_step():
    training = Training(RUN, CPU, learn_tokenizer(320, 20), "bfloat16")
    before = {name: each.clone() for name, each in training.objective.state_dict().items()}
    weight = training.objective.model.image_projection.weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ChiasmError, match=r"found norm (inf|nan); .* with --precision float32 or"):
        training.train_step(train_batch(0, RUN.data, training.tokenizer))
    assert training.step == 0
    for name, each in training.objective.state_dict().items():
        assert torch.equal(each, before[name]), name


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    training = Training(RUN, CPU, learn_tokenizer(320, 20))
    training.ema.tensors["image.position"][0, 0, 0] = math.inf
    with pytest.raises(ChiasmError, match="expected finite tensors, found others in ave") as caught:
        training.save(tmp_path)
    assert not list(tmp_path.iterdir())
    # Steps have changed weights: only the checkpoint is as it was.
    assert str(caught.value).endswith(
        "; the last checkpoint is as it was: train in another folder with a lower --learning-rate"
    )


def test_what_the_weights_depend_on_is_the_same_when_a_training_goes_on(tmp_path):
    run = replace(RUN, steps=1, fusion_steps=1, model=replace(TINY, decoder=None))
    stopped(tmp_path / "own", 1, run=run)
    learned(tmp_path / "towers", replace(run, model=replace(run.model, fusion=None)))
    towers = {"towers": tmp_path / "towers"}
    with pytest.raises(UsageError) as caught:
        learned(tmp_path / "own", run, precision="bfloat16")
    assert str(caught.value) == (
        f"training in {tmp_path / 'own'}: expected precision float32, found precision bfloat16; "
        "give --precision float32, or take another folder"
    )
    refused = r"expected towers None, found towers \w{12}; leave out --towers, or take"
    with pytest.raises(UsageError, match=refused):
        learned(tmp_path / "own", run, **towers)
    learned(tmp_path / "fused", run, **towers)
    with pytest.raises(UsageError, match=r"expected towers \w{12}, found towers None; give --towe"):
        learned(tmp_path / "fused", run)
    assert learned(tmp_path / "fused", run, **towers) == []
    path = tmp_path / "own" / STATE
    tensors, facts = load_state(path)
    save_state(path, tensors, facts | {"processes": 2, "device": "cuda"})
    with pytest.raises(UsageError, match="give --processes 2, give --device cuda, or take another"):
        learned(tmp_path / "own", run)
    save_state(path, tensors, facts | {"settings": {**facts["settings"], "gone": 1}})
    with pytest.raises(
        UsageError, match=r"found one of another version, .*; train anew in another"
    ):
        learned(tmp_path / "own", run)
    with pytest.raises(UsageError, match=r"as it began, found steps 2, ema 0\.5; give what"):
        save_state(path, tensors, facts)
        learned(tmp_path / "own", replace(run, steps=2, ema=0.5))
    del facts["precision"]  # as earlier versions wrote it
    save_state(path, tensors, facts)
    with pytest.raises(UsageError, match="found one of an earlier version of chiasm, which does"):
        learned(tmp_path / "own", run)


def test_weight_decay_leaves_embeddings_norms_and_biases_alone():
    training = Training(RUN, CPU, learn_tokenizer(320, 20))
    for stage, first in zip(training.stages, (0, *ends_of(training.stages)), strict=False):
        training.step = first
        training._begin_stage()
        names = {id(each): name for name, each in training.objective.named_parameters()}
        decayed = {
            names[id(each)]
            for group in training.optimiser.groups
            for each in group.parameters
            if group.weight_decay
        }
        modules = dict(training.objective.named_modules())
        matrices = {
            f"{name}.weight"
            for name, module in modules.items()
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        }
        trained = {name for name in names.values() if name.startswith(stage.trained)}
        assert decayed & matrices == trained & matrices, stage.name
        assert not [n for n in decayed - matrices if not n.startswith("probes.")], stage.name
    assert {"model.decoder.embedding.weight", "model.decoder.position"} <= trained - decayed


def test_a_scale_that_has_become_too_large_comes_back():
    training = Training(RUN, CPU, learn_tokenizer(320, 20))
    model, batch = training.objective.model, train_batch(0, RUN.data, training.tokenizer)
    with torch.no_grad():
        model.log_scale.fill_(math.log(200.0))  # vectors are random yet: a smaller one is better
    training.backward(batch)
    assert model.log_scale.grad > 0
    training.apply()
    assert model.scale.item() == pytest.approx(100.0)
    training.train_step(batch)
    assert model.scale.item() < 99.95


def test_each_cycle_of_a_stage_has_the_rates_of_a_training_of_its_length():
    """Warm restarts (Loshchilov and Hutter, SGDR, 2017): each has the whole schedule."""
    tokenizer = learn_tokenizer(320, 20)
    towers = replace(TINY, fusion=None, decoder=None)
    short, long = (
        Training(replace(RUN, model=towers, steps=steps, cycles=cycles), CPU, tokenizer)
        for steps, cycles in ((3, (1,)), (6, (1, 1)))
    )
    rates = []
    for step in range(3):
        batch = train_batch(step, RUN.data, tokenizer)
        assert short.train_step(batch) == long.train_step(batch)
        short.step = step  # what the rate of this step was
        rates.append((short.progress, short.learning_rate_factor))
        short.step = step + 1
    weights = (item.objective.state_dict() for item in (short, long))
    assert all(torch.equal(*pair) for pair in zip(*map(dict.values, weights), strict=True))
    assert short.progress == 1 and long.progress == 0
    for step in range(3, 5):
        long.step = step
        assert (long.progress, long.learning_rate_factor) == rates[step - 3]


@pytest.mark.parametrize("name", ["cycles", "fusion_cycles", "decoder_cycles"])
@pytest.mark.parametrize("cycles", [(), (0,), (2, 0), (1, -1)])
def test_cycles_without_a_length_are_refused(name, cycles):
    with pytest.raises(ValueError, match=rf"^{name} .*: expected one or more of 1 or more$"):
        TrainSettings(**{name: cycles})


def test_fusion_has_cycles_of_its_own():
    _towers, fusion, *_ = stages_of(replace(RUN, fusion_steps=7, fusion_cycles=(4, 3)))
    assert fusion.name == "fusion"
    assert [fusion.cycle_at(step) for step in (0, 3, 4, 6)] == [(0, 4), (3, 4), (0, 3), (2, 3)]


def test_the_decoder_has_cycles_of_its_own():
    decoder = stages_of(TrainSettings(decoder_steps=7, decoder_cycles=(4, 3)))[-1]
    assert decoder.name == "decoder"
    assert [decoder.cycle_at(step) for step in (0, 3, 4, 6)] == [(0, 4), (3, 4), (0, 3), (2, 3)]


@pytest.mark.parametrize(
    ("steps", "cycles", "lengths"),
    [(6, (2, 1), [4, 2]), (5, (1, 1), [2, 3]), (7, (1,), [7]), (1, (2, 1), [1])],
)
def test_cycles_are_as_long_as_their_share_of_the_steps(steps, cycles, lengths):
    towers, *_ = stages_of(replace(RUN, steps=steps, cycles=cycles))
    expected = [(step, length) for length in lengths for step in range(length)]
    assert [towers.cycle_at(step) for step in range(steps)] == expected
    assert towers.cycle_at(steps) == (lengths[-1], lengths[-1])
