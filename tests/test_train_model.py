"""Several processes that learn one model: through real Ray Train, and by hand beside it."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace

import psutil
import pytest
import torch
from conftest import until

from chiasm.jobs import train_model
from chiasm.jobs.train_model import TrainJob, following, train_on_ray
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.model.checkpoint import load_model, load_state, tensors_in_code
from chiasm.pipeline.model.config import FusionConfig, ImageConfig, ModelConfig, TextConfig
from chiasm.pipeline.training.log import read_log
from chiasm.pipeline.training.pocket.data import DataSettings, learn_tokenizer, train_batches
from chiasm.pipeline.training.pocket.loop import SEED_STRIDE, train
from chiasm.pipeline.training.pocket.trainer import (
    STATE,
    STATE_TENSOR_NAMES,
    Training,
    TrainSettings,
)

TINY = ModelConfig(
    image=ImageConfig(side=36, stem=(8, 8), width=32, depth=1, heads=2),
    text=TextConfig(vocabulary=320, context=40, width=32, depth=1, heads=2),
    dim=16,
    fusion=FusionConfig(width=32, depth=1, heads=2),
)
RUN = TrainSettings(
    steps=4, fusion_steps=2, fusion_batch=16, learning_rate=3e-3, corpus=60, log_every=2,
    checkpoint_every=2, calibrated=8, evaluate_every=100, gallery=24, model=TINY,
    data=DataSettings(seed=3, batch=24, side=36, context=40),
)  # fmt: skip
CPU = torch.device("cpu")
# Ray Train reads settings of Ray Data that Ray itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _nothing_is_preempted(monkeypatch):
    """Else Ray Train starts a process that watches for a cluster that takes a node back."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def job(folder, settings=RUN, workers=2):
    folder.mkdir(parents=True, exist_ok=True)
    return TrainJob(
        settings=settings, folder=folder, towers=None, workers=workers, cpus=0.5, gpu=False,
        precision="float32", drawing=0, address=None,
    )  # fmt: skip


def by_hand(settings, ranks):
    """The same training in one process: every rank's gradients, their mean, one step for all."""
    tokenizer = learn_tokenizer(settings.model.text.vocabulary, settings.corpus)
    several = [Training(settings, CPU, tokenizer) for _ in range(ranks)]
    for step in range(settings.all_steps):
        fusing = step >= settings.steps
        gradients = []
        for rank, training in enumerate(several):
            data = replace(settings.data, seed=settings.data.seed + rank * SEED_STRIDE)
            if fusing:
                data = replace(data, batch=settings.fusion_batch)
            (batch,) = train_batches(step, step + 1, data, tokenizer, 0)
            training.backward(batch, torch.float32)
            gradients.append([each.grad.clone() for each in training.optimiser.parameters])
        mean = [torch.stack(each).mean(0) for each in zip(*gradients, strict=True)]
        for training in several:
            for parameter, gradient in zip(training.optimiser.parameters, mean, strict=True):
                parameter.grad = gradient.clone()
            training.apply()
    if several[0].fusing:
        several[0].calibrate()
    return several[0]


@pytest.mark.timeout(600)
def test_two_processes_learn_by_the_mean_of_their_gradients_and_one_that_dies_costs_no_step(
    ray_session, tmp_path
):
    """One is killed after a checkpoint; the training goes on from it, through both stages, and ends
    with the weights of a training by hand. It is interrupted once, on purpose; one that nothing
    disturbs is that of tests/test_train_cli.py, in one process."""
    settings = replace(RUN, steps=40)
    killed = threading.Event()

    def kill_one():
        until((tmp_path / STATE).exists, 500)
        workers = [
            p
            for p in psutil.Process().children(recursive=True)  # not those of another test's
            if "RayTrainWorker" in " ".join(p.cmdline())
        ]
        os.kill(workers[0].pid, signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    messages = []
    train_on_ray(job(tmp_path, settings), messages.append)
    assert killed.is_set()
    saved, facts = load_state(tmp_path / STATE)
    tensors = tensors_in_code(saved, STATE_TENSOR_NAMES)
    assert facts["step"] == settings.all_steps
    hand = by_hand(settings, 2).tensors()
    assert tensors.keys() == hand.keys()
    for name, value in hand.items():
        assert torch.allclose(tensors[name], value, atol=2e-4, rtol=1e-3), name
    assert [line["step"] for line in read_log(tmp_path)] == [*range(2, 41, 2), 40, 42]
    assert len(messages) >= 22 and '"step": 42' in messages[-1]
    load_model(tmp_path)


@pytest.mark.timeout(600)
def test_what_a_worker_cannot_do_is_told_in_one_line(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(train_model, "ATTEMPTS", 0)
    towers = replace(RUN, steps=1, fusion_steps=0, model=replace(TINY, fusion=None))
    train(towers, tmp_path, device="cpu", precision="float32", workers=0)
    with pytest.raises(ChiasmError, match="expected workers that learn to the end, found"):
        train_on_ray(job(tmp_path, replace(towers, steps=2), 1), print)


def test_a_file_is_followed_as_it_grows(tmp_path):
    messages = []
    (tmp_path / "log").write_text("before\n")
    with following(tmp_path / "log", messages.append), (tmp_path / "log").open("a") as file:
        file.write("one\ntw")
        file.flush()
        until(lambda: messages)
        assert messages == ["one"]
        file.write("o\nthree\n")
        file.flush()
    assert messages == ["one", "two", "three"]
