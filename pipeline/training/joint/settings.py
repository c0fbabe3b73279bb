"""The settings of `chiasm train joint`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ModelConfig,
    TextConfig,
    without_absent,
)
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.training.joint.samples import SampleSettings

VOCABULARY = 4096  # people's words are more than those of drawn scenes


@dataclass(frozen=True)
class JointSettings:
    """What is trained on what.

    encoder: a frozen one, whose vectors are fused; None: towers of its own, from nothing or from
    those of the model folder `start`. steps, fusion_steps, decoder_steps: of the stages
    (objective.py); None: the recipe's, where decoder_steps depend on what json has. batch: pictures
    of a step of each stage but the decoder's, which has `decoder_batch`; on top of a frozen encoder
    `frozen_batch`, since vectors cost little. warmup: a share of a stage's steps. ema: decay of the
    average. model: of towers from nothing; its tokenizer is learned from the captions.
    """

    encoder: str | None = None
    start: Path | None = None
    steps: int = 1600
    fusion_steps: int = 2000
    frozen_steps: int = 600
    decoder_steps: int | None = None
    batch: int = 64
    frozen_batch: int = 128
    decoder_batch: int = 48
    learning_rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.05
    ema: float = 0.998
    clip: float = 1.0
    checkpoint_every: int = 100
    evaluate_every: int = 200
    log_every: int = 20
    seed: int = 0
    fusion: FusionConfig | None = None
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            text=TextConfig(vocabulary=VOCABULARY), decoder=DecoderConfig()
        )
    )
    samples: SampleSettings = field(default_factory=SampleSettings)
    device: EncoderSettings = field(default_factory=EncoderSettings)

    def facts(self) -> dict[str, Any]:
        """What the weights depend on, as plain values, but for what is read of the disk: the
        encoder and `start` are named by what they hold."""
        fields = asdict(self)
        for name in ("encoder", "start", "device", "samples"):
            del fields[name]
        fields["model"] = without_absent(self.model)
        fields["fusion"] = self.fusion and without_absent(self.fusion)
        return fields
