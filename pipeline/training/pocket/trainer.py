"""A training at one moment: weights, their average and the optimiser, and how a step changes them.

A training goes through stages (stages.py). A stage trains some of the parameters and leaves all
others at the moving average of the stages before. The weights that ship are the average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import load_model, require_finite_tensors, save_model
from chiasm.pipeline.model.inference import match_pairs
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.pretrained.device_and_precision import PRECISIONS
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.training.distributed import (
    broadcast_first,
    mean_over_processes,
    rank_and_world_size,
)
from chiasm.pipeline.training.optim import (
    Ema,
    Optimiser,
    decay_groups,
    matrix_decays,
    require_finite,
    with_prefix,
    without_prefix,
)
from chiasm.pipeline.training.pocket.calibrate import (
    calibration_bias,
    calibration_seed,
    joint_galleries,
    wins,
)
from chiasm.pipeline.training.pocket.data import WORLDS
from chiasm.pipeline.training.pocket.joint_task import JointTask, JointVectors, best_text_weight
from chiasm.pipeline.training.pocket.objective import Objective
from chiasm.pipeline.training.pocket.settings import TrainSettings
from chiasm.pipeline.training.pocket.stages import Stage, begun_config, ends_of, stages_of
from chiasm.pipeline.training.pocket.state import (
    TOKENIZER_DIGEST,
    average_of,
    digest_of,
    read_state,
    shapes_of,
    write_state,
)

SEED_STRIDE = 1_000_000  # between the seeds of processes that train together


class Training:
    """A model, its average and its optimiser at one moment of a run; `step`: steps done.

    precision: a key of PRECISIONS, which weights are rounded to for the passes of a step.
    """

    def __init__(
        self,
        settings: TrainSettings,
        device: torch.device,
        tokenizer: Tokenizer,
        precision: str = "float32",
    ) -> None:
        self.settings, self.device, self.tokenizer = settings, device, tokenizer
        self.precision, self.stages = precision, stages_of(settings)
        data, tokens = settings.data, settings.model.image_tokens
        self.config = replace(
            settings.model,
            image=replace(settings.model.image, side=data.side),
            text=replace(settings.model.text, vocabulary=len(tokenizer), context=data.context),
            image_tokens=tokens and replace(tokens, side=data.side),
        )
        torch.manual_seed(data.seed)
        self.world = WORLDS[data.world]
        self.objective = Objective(self.config, self.world).to(device)
        self.ema = Ema(self.objective.model.state_dict(), settings.ema)
        self.step, self.seconds = 0, 0.0
        self.towers: str | None = None  # digest of towers that were not trained here
        self._begin_stage()

    def _begin_stage(self) -> None:
        """Choose the parameters to train from `step` on, and a new optimiser for them."""
        self.objective.model.load_state_dict(self.ema.tensors)
        for name, parameter in self.objective.named_parameters():
            parameter.requires_grad_(name.startswith(self.stage.trained))
        trained = [item for item in self.objective.named_parameters() if item[1].requires_grad]
        groups = decay_groups(trained, self.settings.weight_decay, matrix_decays)
        groups.sort(key=lambda group: group.weight_decay, reverse=True)
        learning_rate = self.settings.learning_rate * self.stage.rate
        self.optimiser = Optimiser(groups, learning_rate, self.settings.clip)

    @property
    def stage(self) -> Stage:
        """The stage of the next step; after the last step, the last stage."""
        return self._stage_and_first[0]

    @property
    def stage_step(self) -> int:
        """Steps of the present stage that are done."""
        return self.step - self._stage_and_first[1]

    @property
    def _stage_and_first(self) -> tuple[Stage, int]:
        first = 0
        for stage, end in zip(self.stages, ends_of(self.stages), strict=True):
            if self.step < end or stage is self.stages[-1]:
                return stage, first
            first = end
        raise AssertionError("a training without stages")

    @property
    def progress(self) -> float:
        """Of the present cycle of the stage, 0 to 1."""
        done, steps = self.stage.cycle_at(self.stage_step)
        return done / steps

    @property
    def learning_rate_factor(self) -> float:
        """Of the highest learning rate."""
        return self.stage.rate_at(self.stage_step, self.settings.warmup)

    def train_step(self, batch: Any) -> dict[str, float]:
        """One step on a batch of the stage: forward, backward, update, average. -> the losses, as
        logged. ChiasmError where one or a gradient is not finite: nothing is updated."""
        losses = self.backward(batch)
        return losses | {"norm": self.apply()}

    def backward(self, batch: Any) -> dict[str, float]:
        """The gradients of a batch, averaged over all processes. -> its losses, averaged too."""
        losses = self._passed(self.stage.losses, batch)
        total = self.stage.total(losses, self.progress)
        self.optimiser.backward(total)
        means = mean_over_processes(torch.stack([total, *losses.values()])).tolist()
        found = dict(zip(["loss", *losses], means, strict=True))
        require_finite(found, self._next_step, self._after_failure)
        return found

    @torch.no_grad()
    def keep(self, batch: Any) -> Any:
        """What the stage keeps of a batch."""
        assert self.stage.keep is not None
        return self._passed(self.stage.keep, batch)

    def _passed(self, made: Callable[[Objective, Any, torch.Generator], Any], batch: Any) -> Any:
        """What the objective makes of a batch."""
        # Weights are kept in float32 and rounded for each pass: autocast would go back to float32
        # at every norm, which costs a CPU time. A scalar is not worth rounding.
        dtype = PRECISIONS[self.precision]
        rounded = {
            name: value.to(dtype) if value.ndim else value
            for name, value in self.objective.named_parameters()
        }
        # What one process drops another keeps.
        seed = self.settings.data.seed + rank_and_world_size()[0] * SEED_STRIDE
        generator = torch.Generator().manual_seed(seed * 10**9 + self.step)
        return functional_call(self.objective, rounded, (made, batch, generator))

    def apply(self) -> float:
        """Update weights and average by the gradients, and go on to the next step or stage. -> the
        norm of the gradients."""
        factors = {"": self.learning_rate_factor}
        norms = self.optimiser.apply(factors, self._next_step, self._after_failure)
        self.objective.model.limit_scale()
        trained = (
            (name, value)
            for name, value in self.objective.model.named_parameters()
            if value.requires_grad
        )
        self.ema.update(trained, updates=self.stage_step)
        before = self.stage
        self.step += 1
        if self.stage is not before:
            self._begin_stage()
        return norms[""]

    @property
    def _next_step(self) -> str:
        return f"step {self.step + 1} of the training, of stage {self.stage.name}"

    @property
    def _after_failure(self) -> str:
        """What to do where a step cannot be made. Run again, it would be the same step."""
        return f"no weight was changed, and {self._instead}"

    @property
    def _instead(self) -> str:
        """What to do where a training cannot go on as it is."""
        exact = "" if self.precision == "float32" else "--precision float32 or "
        return (
            "the last checkpoint is as it was: train in another folder "
            f"with {exact}a lower --learning-rate"
        )

    def begin_joint(self, samples: int) -> None:
        """Let the joint vector begin as the best weighted mean of the towers' vectors, the weights
        chosen on galleries of so many scenes. Of several processes the first chooses."""
        if rank_and_world_size()[0] == 0:
            model = self._average()
            self._make_mean(model, best_text_weight(self._galleries(model, samples)))
        self._share_fusion()
        self._begin_stage()

    def calibrate(self, samples: int) -> None:
        """Move the bias of matching to where it is best calibrated on so many scenes; where the
        joint vector does not beat the best weighted mean on galleries of as many, make it that.
        Of several processes the first decides: another machine might round otherwise."""
        if rank_and_world_size()[0] == 0:
            self._calibrate(samples)
        self._share_fusion()
        if self.stage_step == 0:  # the next stage, which starts at the average, has begun
            self._begin_stage()

    def _calibrate(self, samples: int) -> None:
        model, side = self._average(), self.config.image.side
        self.ema.tensors["matching.bias"] += calibration_bias(
            lambda pixels, texts, pairs: match_pairs(model, self.tokenizer, pixels, texts, pairs),
            lambda scene: to_pixels(picture(scene), side),
            samples,
            calibration_seed(self.settings.data.seed),
            self.world,
        )
        galleries = self._galleries(model, samples)
        weight = best_text_weight(galleries)
        if not wins(galleries, weight):
            self._make_mean(model, weight)

    def _galleries(self, model: JointNetwork, samples: int) -> list[tuple[JointTask, JointVectors]]:
        seed = calibration_seed(self.settings.data.seed)
        return joint_galleries(model, self.tokenizer, samples, seed, self.world)

    def _share_fusion(self) -> None:
        """Take over the first process's average of fusion and matching."""
        broadcast_first(
            tensor
            for name, tensor in sorted(self.ema.tensors.items())
            if name.startswith(("fusion.", "matching."))
        )

    def _average(self) -> JointNetwork:
        """The model with the averaged weights, in evaluation mode."""
        model = JointNetwork(self.config).to(self.device).eval()
        model.load_state_dict(self.ema.tensors)
        return model

    def _make_mean(self, model: JointNetwork, text_weight: float) -> None:
        """Let the average's joint vector be a mean; model: `_average`."""
        assert model.fusion is not None
        model.fusion.reset_to_mean((text_weight, 1 - text_weight))
        for name, tensor in model.fusion.state_dict().items():
            self.ema.tensors[f"fusion.{name}"].copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        return {
            **with_prefix(self.objective.state_dict(), "weights."),
            **with_prefix(self.ema.tensors, "average."),
            **with_prefix(self.optimiser.tensors(), "optimiser."),
        }

    @property
    def conditions(self) -> dict[str, str | int | None]:
        """What the weights depend on beside the settings, by the keys of state.CONDITIONS and
        TOKENIZER_DIGEST."""
        return {
            "precision": self.precision,
            "processes": rank_and_world_size()[1],
            "device": self.device.type,
            "towers": self.towers,
            TOKENIZER_DIGEST: digest_of(self.tokenizer),
        }

    def save(self, folder: Path) -> None:
        """Write the average as a model folder that an encoder can load, then the state. A part
        whose stage has not begun is left out of the model: what has not learned to match, or to
        write, shall not seem to. ChiasmError where a tensor is not finite: nothing is written."""
        tensors = self.tensors()
        what = f"state of a training after step {self.step}"
        require_finite_tensors(tensors, what, self._instead)
        config = begun_config(self.config, self.stages, self.step)
        weights = {name: self.ema.tensors[name] for name in JointNetwork(config).state_dict()}
        # The model first: where there is a state, its tokenizer is there too.
        save_model(folder, weights, config, self.tokenizer)
        facts = {
            "step": self.step,
            "stage": self.stage.name,
            "seconds": self.seconds,
            "settings": self.settings.to_json(),
            **self.conditions,
        }
        write_state(folder, tensors, facts)

    def load_towers(self, folder: Path) -> None:
        """Begin at the second stage, on a model folder whose tokenizer is this one: its towers,
        and its other parts where no stage trains them. UsageError where they are not of these
        settings' shapes, and where nothing is left to train."""
        model, _ = load_model(folder)
        later = tuple(prefix for stage in self.stages[1:] for prefix in stage.trained)
        if not later:
            raise UsageError(
                f"--towers {folder}",
                expected="something to learn on top of them",
                found="0 steps of all other stages",
                do="leave out --fusion-steps 0, --image-token-steps 0 or --decoder-steps 0",
            )
        names = [name for name in self.ema.tensors if not f"model.{name}".startswith(later)]
        if shapes_of(names, self.config) != shapes_of(names, model.config):
            raise UsageError(
                f"--towers {folder}",
                expected="towers of this preset's shapes",
                found="others",
                do="train towers anew: leave out --towers",
            )
        weights = average_of(folder, model)
        with torch.no_grad():
            for name in names:
                self.ema.tensors[name].copy_(weights[name])
        self.towers = digest_of(self.tokenizer, {name: weights[name] for name in names})
        self.step = self.stages[0].steps
        self._begin_stage()

    def resume(self, folder: Path) -> None:
        """Go on from the state in a folder; UsageError where the settings or the conditions that it
        was made with were others."""
        tensors, facts = read_state(folder, self.settings.to_json(), self.conditions)
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.load(tensors)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors of `tensors()`, as of `step`."""
        self._begin_stage()
        self.objective.load_state_dict(without_prefix(tensors, "weights."))
        self.ema.load(without_prefix(tensors, "average."))
        self.optimiser.load(without_prefix(tensors, "optimiser."))
