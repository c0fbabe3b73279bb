"""Two real processes that learn one model, over gloo, beside one process that does it alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import in_processes

from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ImageConfig,
    ImageTokensConfig,
    ModelConfig,
    TextConfig,
)
from chiasm.pipeline.training.distributed import (
    gather_rows,
    mean_over_processes,
    rank_and_world_size,
)
from chiasm.pipeline.training.pocket import objective, trainer
from chiasm.pipeline.training.pocket.data import DataSettings, learn_tokenizer, train_batch
from chiasm.pipeline.training.pocket.objective import Objective
from chiasm.pipeline.training.pocket.settings import TrainSettings, task_settings
from chiasm.pipeline.training.pocket.task_data import task_batch
from chiasm.pipeline.training.pocket.trainer import Training

TINY = ModelConfig(
    ImageConfig(side=36, stem=(8, 16), width=32, depth=1, heads=2),
    TextConfig(vocabulary=400, context=40, width=32, depth=1, heads=2),
    dim=16,
    fusion=FusionConfig(width=32, depth=1, heads=2),
)
TOKENIZER = learn_tokenizer(400, 60)
CPU = torch.device("cpu")


def settings_of(batch):
    """A training whose towers and fusion see `batch` pictures a step in each process."""
    data = DataSettings(seed=3, batch=batch, side=36, context=40)
    return TrainSettings(steps=2, fusion_steps=2, fusion_batch=batch, data=data, model=TINY)


def drawn(batch, step=0):
    return train_batch(step, settings_of(batch).data, TOKENIZER, *rank_and_world_size())


def gradients_of(training):
    return {
        name: each.grad.numpy().copy()
        for name, each in training.objective.named_parameters()
        if each.grad is not None
    }


def tower_step(batch):
    """Losses and gradients of a step of the towers."""
    training = Training(settings_of(batch), CPU, TOKENIZER)
    return training.backward(drawn(batch)), gradients_of(training)


def joint_loss(batch):
    """`joint` of the whole batch without dropped modalities, and its gradients."""
    training = Training(settings_of(batch), CPU, TOKENIZER)
    training.step = 2
    training._begin_stage()
    for each in training.objective.model.fusion.residual.parameters():
        torch.nn.init.constant_(each, 0.01)  # else nothing but this learns at the start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "MODALITY_DROPOUT", 0.0)
        losses = training.objective.fusion_losses(drawn(batch, 1), torch.Generator())
    training.optimiser.backward(losses["joint"])
    return float(mean_over_processes(losses["joint"])), gradients_of(training)


def random_draws():
    """What is drawn at random in a step of the fusion, as a digest; and of the two next."""
    training = Training(settings_of(8), CPU, TOKENIZER)
    training.step, found = 2, []
    wrong_pairs = objective.wrong_pairs

    def noting(scores, true, generator):
        found.append(hashlib.sha256(generator.get_state().numpy().tobytes()).hexdigest())
        return wrong_pairs(scores, true, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "wrong_pairs", noting)
        for _ in range(2):
            training._begin_stage()
            training.train_step(drawn(8))
    return found


def failing_step():
    """One process alone has a loss that is not finite: what either says of it, and its weights."""
    training = Training(settings_of(8), CPU, TOKENIZER)
    before = training.objective.model.log_scale.item()
    rank, _ = rank_and_world_size()
    tower_losses = Objective.tower_losses

    def spoiled(self, batch, generator):
        losses = tower_losses(self, batch, generator)
        return losses | {"words": losses["words"] * (float("nan") if rank == 1 else 1.0)}

    stage = replace(training.stages[0], losses=spoiled)
    training.stages = (stage, *training.stages[1:])
    try:
        training.train_step(drawn(8))
    except ChiasmError as error:
        return str(error), training.objective.model.log_scale.item() == before
    return "no error", False


def decoder_step(batch):
    """Losses and gradients of a step of the decoder, with a picture more for sentiment, and less
    drawings in one process than in the other."""
    decoder = DecoderConfig(width=16, depth=1, heads=2, context=48)
    tokens = ImageTokensConfig(side=36, stride=12, width=16, depth=(1, 1))
    settings = replace(
        settings_of(1), steps=0, image_token_steps=0, decoder_batch=batch,
        examples={"ask": 2, "imagine": 0.3},
        pictures={"sentiment": batch // 4},
        model=replace(TINY, fusion=None, decoder=decoder, image_tokens=tokens),
    )  # fmt: skip
    settings = replace(settings, data=replace(settings.data, world="world 2"))
    training = Training(settings, CPU, TOKENIZER)
    tasks = task_batch(0, task_settings(settings), TOKENIZER, *rank_and_world_size())
    return training.backward(tasks), gradients_of(training)


def mean_weights():
    """The weights of the mean after processes that find different ones have begun to fuse."""
    training = Training(settings_of(8), CPU, TOKENIZER)
    training.step = 2
    rank, _ = rank_and_world_size()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "best_text_weight", lambda _: (0.2, 0.4)[rank])
        training.begin_joint(6)
        before = training.ema.tensors["matching.bias"].item()
        found = training.objective.model.fusion.mean_weights.tolist()
        training.ema.tensors["fusion.residual.weight"].fill_(1.0)
        patch.setattr(trainer, "wins", lambda *_: rank == 1)
        patch.setattr(trainer, "calibration_bias", lambda *_: 1.0 + rank)
        training.calibrate(6)
    fusion = training._average().fusion
    return found, training.ema.tensors["matching.bias"].item() - before, fusion.is_mean


def gathered():
    """A sum over rows of all processes, and the gradient that comes back to this one's."""
    rank, _ = rank_and_world_size()
    rows = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
    everywhere = gather_rows(rows)
    weight = torch.arange(12.0).view(6, 2) * (rank + 1)
    (everywhere * weight).sum().backward()
    return everywhere.detach().numpy(), rows.grad.numpy(), rank_and_world_size()


def all_of_it():
    """Everything that is tested with two processes: to start them takes longer than this."""
    return (
        gathered(),
        tower_step(12),
        joint_loss(12),
        random_draws(),
        failing_step(),
        decoder_step(4),
        mean_weights(),
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each of two processes finds, by test."""
    found = in_processes(2, tmp_path_factory.mktemp("group"), all_of_it)
    return list(zip(*found, strict=True))


def test_rows_are_gathered_from_all_and_gradients_flow_back(pair):
    (rows, gradient, place), (other_rows, other_gradient, other_place) = pair[0]
    expected = np.concatenate([np.arange(6.0).reshape(3, 2) + 10 * rank for rank in (0, 1)])
    assert (place, other_place) == ((0, 2), (1, 2))
    assert (rows == expected).all() and (other_rows == expected).all()
    summed = 3 * np.arange(12.0).reshape(6, 2)  # once times the weights and twice times them
    assert (np.concatenate([gradient, other_gradient]) == summed).all()


def test_two_processes_have_the_gradient_of_one_with_all_rows(pair):
    losses, gradients = tower_step(24)
    for found, of_two in pair[1]:
        assert found == pytest.approx(losses, abs=1e-5)
        assert of_two.keys() == gradients.keys()
        for name, gradient in gradients.items():
            np.testing.assert_allclose(of_two[name], gradient, 1e-5, 1e-5, err_msg=name)
    assert max(np.abs(each).max() for each in gradients.values()) > 0.1


def test_two_processes_have_the_decoder_gradient_of_one_with_all_rows(pair):
    losses, gradients = decoder_step(8)
    assert set(losses) == {"loss", "ask", "imagine", "sentiment"}
    for found, of_two in pair[5]:
        assert found == pytest.approx(losses, abs=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(of_two[name], gradient, 1e-5, 1e-5, err_msg=name)


def test_joint_vectors_are_compared_with_the_captions_of_all_processes(pair):
    loss, gradients = joint_loss(24)
    assert "model.fusion.residual.weight" in gradients
    for found, of_two in pair[2]:
        assert found == pytest.approx(loss, abs=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(of_two[name], gradient, 1e-5, 1e-5, err_msg=name)


def test_processes_draw_hard_negatives_each_in_its_own_way(pair):
    first, second = pair[3]
    assert len({*first, *second}) == 4  # two steps of two processes


def test_all_processes_stop_at_a_loss_of_one_that_is_not_finite(pair):
    for message, unchanged in pair[4]:
        assert message.startswith(
            "step 1 of the training, of stage towers: expected finite losses and gradients, found "
            "loss nan, words nan; no weight was changed"
        )
        assert unchanged


def test_the_first_process_decides_on_bias_and_joint_vector_for_all(pair):
    first, second = pair[6]
    assert first == second
    weights, bias, is_mean = first
    assert weights == pytest.approx([0.2, 0.8]) and bias == pytest.approx(1.0) and is_mean


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_rows_of_one_batch(world_size):
    data = settings_of(6).data
    whole = train_batch(5, replace(data, batch=6 * world_size), TOKENIZER)
    parts = [train_batch(5, data, TOKENIZER, rank, world_size) for rank in range(world_size)]
    assert [part.first for part in parts] == list(range(0, 6 * world_size, 6))
    for name in ("pixels", "places", "background", "kinds", "bag"):
        together = np.concatenate([getattr(part, name) for part in parts])
        assert (together == getattr(whole, name)).all(), name
    for n, caption in enumerate(whole.captions):
        for name in ("also_true", "kinds", "relations", "bag"):
            together = np.concatenate([getattr(part.captions[n], name) for part in parts])
            assert (together == getattr(caption, name)).all(), name
        columns = np.concatenate([part.captions[n].others_true for part in parts], axis=1)
        assert (columns == caption.also_true).all()
        for part in parts:
            ids = part.captions[n].ids
            own = caption.ids[part.first : part.first + 6]
            assert (own[:, : ids.shape[1]] == ids).all() and not own[:, ids.shape[1] :].any()
