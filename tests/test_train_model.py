"""Several processes that learn one model: through real Ray Train, and by hand beside it."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace

import psutil
import pytest
import torch
from conftest import until
from processes import in_processes

from chiasm.jobs import train_model
from chiasm.jobs.train_model import TrainJob, following, train_on_ray
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import load_model, load_state
from chiasm.pipeline.model.config import FusionConfig, ImageConfig, ModelConfig, TextConfig
from chiasm.pipeline.training.log import read_log
from chiasm.pipeline.training.pocket.data import DataSettings
from chiasm.pipeline.training.pocket.loop import train
from chiasm.pipeline.training.pocket.settings import TrainSettings
from chiasm.pipeline.training.pocket.state import STATE

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


def kill_a_worker() -> bool:
    """Kill a worker of this process's Ray; False where there is none."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                return True
    return False


def undisturbed(settings, folder):
    """The same training in one of a group's processes, without Ray."""
    train(settings, folder, device="cpu", precision="float32", workers=0)


@pytest.mark.timeout(600)
def test_two_processes_learn_one_model_and_one_that_dies_costs_no_step(ray_session, tmp_path):
    """One is killed after a checkpoint; the training goes on from it, through both stages, and ends
    with the weights of two processes without Ray that nobody disturbs. What these learn is that of
    one process with all rows: tests/test_distributed.py."""
    settings, folder = replace(RUN, steps=16), tmp_path / "ray"
    killed = threading.Event()

    def kill_one():
        until((folder / STATE).exists, 500)
        until(kill_a_worker, 500)
        killed.set()

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    messages = []
    train_on_ray(job(folder, settings), messages.append)
    assert killed.is_set()
    tensors, facts = load_state(folder / STATE)
    assert (facts["step"], facts["processes"]) == (settings.all_steps, 2)
    in_processes(2, tmp_path, undisturbed, settings, tmp_path / "alone")
    expected, _ = load_state(tmp_path / "alone" / STATE)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(tensors[name], value, atol=2e-4, rtol=1e-3), name
    assert [line["step"] for line in read_log(folder)] == [*range(2, 17, 2), 16, 18]
    assert len(messages) >= 10 and '"step": 18' in messages[-1]
    load_model(folder)


@pytest.mark.timeout(600)
def test_what_would_fail_at_every_attempt_is_tried_once(ray_session, tmp_path, monkeypatch):
    """What may pass is tried again: the test above."""
    towers = replace(RUN, steps=1, fusion_steps=0, model=replace(TINY, fusion=None))
    folder, attempts = tmp_path / "model", tmp_path / "attempts"
    train(towers, folder, device="cpu", precision="float32", workers=0)
    learn = train_model._learn

    def counted(config):
        with attempts.open("a") as file:
            file.write("x")
        learn(config)

    monkeypatch.setattr(train_model, "_learn", counted)
    with pytest.raises(UsageError, match="expected steps 1, as it began, found steps 2"):
        train_on_ray(job(folder, replace(towers, steps=2), 1), print)
    assert attempts.read_text() == "x"


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
