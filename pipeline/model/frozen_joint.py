"""Fusion and matching on top of an encoder that stays as it is: what `chiasm train joint --towers`
learns, and its folder.

Each modality is one token, the encoder's own vector of the item. The joint vector begins as the
weighted mean of the vectors, and the learned residual is that of fusion.py. Matching adds what is
learned to the cosine that the encoder itself matches by:

    logit = a cos(text, image) + g m + b,   m the logit of matching.py

a is learned, g = 1 and b = 0 in training; then all three are chosen on other pictures.

The folder holds these weights alone: config.json names the encoder and its fingerprint, and nothing
is computed on another one.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.model.checkpoint import (
    CONFIG,
    MISFITS,
    WEIGHTS,
    load_as,
    require_finite_tensors,
    require_sound,
    write_file,
)
from chiasm.pipeline.model.config import FusionConfig, of_fields, require_values
from chiasm.pipeline.model.fusion import Fused, Fusion, Modality
from chiasm.pipeline.model.matching import Match, Matching
from chiasm.pipeline.model.towers import INITIAL_SCALE, LARGEST_SCALE, initialise

FROZEN_FORMAT = "chiasm frozen joint 1"
FROZEN_FILES = (WEIGHTS, CONFIG)
DROPOUT = 0.3  # of the tokens' elements in training: thousands of pairs are few


@dataclass(frozen=True)
class FrozenJointConfig:
    """encoder: a name that loads it from any working directory; fingerprint: of what it was;
    dim: E of its vectors. ValueError for values that are no sizes."""

    encoder: str
    fingerprint: str
    dim: int
    fusion: FusionConfig

    def __post_init__(self) -> None:
        require_values("", self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> FrozenJointConfig:
        """Inverse of `to_dict`; ValueError for unknown or missing fields, see `of_fields`."""
        return of_fields(cls, plain, fusion=FusionConfig)


class FrozenJointNetwork(nn.Module):
    """Vectors of pictures and texts -> joint vectors and matches; the parts that `JointNetwork` has
    beside its towers, under the same names."""

    match_rest: Tensor

    def __init__(self, config: FrozenJointConfig) -> None:
        super().__init__()
        self.config = config
        self.fusion = Fusion(config.fusion, (config.dim, config.dim), config.dim)
        self.matching = Matching(config.fusion.width)
        self.fusion.reset_parameters()
        self.matching.apply(initialise)
        self.match_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))  # a above
        self.register_buffer("match_rest", torch.tensor([1.0, 0.0]))  # g and b
        # From cosines to the logits of contrast; models in use have no need of it.
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))

    @property
    def scale(self) -> Tensor:
        """Factor from cosines to logits, learned."""
        return self.log_scale.exp()

    @torch.no_grad()
    def limit_scale(self) -> None:
        """As `DualEncoder.limit_scale`."""
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))

    def image_modality(self, vectors: Tensor) -> Modality:
        """Unit vectors (B, E) float32 -> one token each. A unit vector has elements of size
        E^-0.5, which is scaled to 1."""
        mask = torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device)
        tokens = functional.dropout(vectors[:, None], DROPOUT, self.training)
        return Modality(tokens * self.config.dim**0.5, mask, vectors)

    text_modality = image_modality

    def fuse(self, text: Modality | None, image: Modality | None) -> Fused:
        """Both, or what there is of them, fused."""
        return self.fusion([text, image])

    def match(self, text: Modality, image: Modality) -> Match:
        """Row by row, does text i describe picture i?"""
        return self.match_fused(self.fuse(text, image), text, image)

    def match_fused(self, fused: Fused, text: Modality, image: Modality) -> Match:
        """The same where they are fused already."""
        match, (learned, bias) = self.matching(fused), self.match_rest
        cosine = (text.vector * image.vector).sum(-1)
        logit = self.match_scale * cosine + learned * match.logit + bias
        return Match(logit, match.conflict)

    @torch.no_grad()
    def mix_match(self, cosine: float, learned: float, bias: float = 0.0) -> None:
        """Set a, g and b of matching."""
        self.match_scale.fill_(cosine)
        self.match_rest.copy_(torch.tensor([learned, bias]))

    @torch.no_grad()
    def add_match_bias(self, bias: float) -> None:
        """Add to b."""
        self.match_rest[1] += bias


def save_frozen_joint(folder: Path, network: FrozenJointNetwork) -> None:
    """Write a model folder, float32. ChiasmError where a weight is not finite: nothing is
    written."""
    tensors = network.state_dict()
    require_finite_tensors(tensors, f"model folder {folder}")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    fields = {"format": FROZEN_FORMAT, **network.config.to_dict()}
    write_file(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
    write_file(folder / CONFIG, (json.dumps(fields, indent=2) + "\n").encode())


def load_frozen_joint(folder: Path) -> FrozenJointNetwork:
    """The network of a model folder, on the CPU, in evaluation mode.

    Raises EncoderError: no such folder, a file missing, a folder of another kind of model, or files
    that do not fit together.
    """
    missing = [name for name in FROZEN_FILES if not (folder / name).is_file()]
    if missing:
        raise _not_a_model(
            folder,
            ", ".join(FROZEN_FILES),
            "no " + ", no ".join(missing),
            "name a folder written by chiasm train joint --towers",
        )
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = fields.pop("format", None)
        if kind != FROZEN_FORMAT:
            raise _not_a_model(folder, f"a {FROZEN_FORMAT}", str(kind), load_as(folder, kind))
        network = FrozenJointNetwork(FrozenJointConfig.from_dict(fields))
        saved = load_file(folder / WEIGHTS)
        require_sound(saved, network)
        network.load_state_dict(saved)
    except MISFITS as error:
        found = f"{type(error).__name__}: {error}"[:300]
        raise _not_a_model(
            folder, "weights and config of one model", found, "copy the folder again"
        ) from error
    return network.eval()


def _not_a_model(folder: Path, expected: str, found: str, do: str) -> EncoderError:
    return EncoderError(f"model folder {folder}", expected=expected, found=found, do=do)
