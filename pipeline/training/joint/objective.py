"""What each stage learns, by which losses, for towers of one's own and on top of a frozen encoder.

    towers    InfoNCE of pictures with captions, two of a picture where it has several
    fusion    matching, of pairs and hard negatives of the batch (Li et al., ALBEF, 2021), and
              InfoNCE of joint vectors with another caption of the picture
    decoder   cross entropy of what is to be written, by task

An index holds a picture with one caption, and queries are other words for it: that is what joint
vectors learn. A picture with one caption has no part in it, since they would learn to copy that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chiasm.pipeline.model.frozen_joint import FrozenJointNetwork
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.losses import info_nce, matching_loss
from chiasm.pipeline.training.joint.data import Batch
from chiasm.pipeline.training.pocket.objective import decoder_losses, wrong_pairs
from chiasm.pipeline.training.pocket.task_data import TaskBatch

Network = JointNetwork | FrozenJointNetwork
Losses = Callable[[Any, Any, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Stage:
    """name: in logs. trained: prefixes of the names of the parameters that learn; all others stay
    at the average of the stages before. batch: pictures of a step. losses: float32 scalars by name,
    of which the sum is minimised."""

    name: str
    steps: int
    batch: int
    trained: tuple[str, ...]
    losses: Losses


def tower_losses(model: JointNetwork, batch: Batch, _: torch.Generator) -> dict[str, Tensor]:
    """`contrast`: the mean over both captions."""
    image, same = model.image_modality(batch.image).vector, batch.same
    losses = [info_nce(image, model.text_modality(batch.caption).vector, model.scale, same)]
    if int(batch.several.sum()) > 1:
        image, text, same = _of_several(batch, image, model.text_modality(batch.other).vector)
        losses.append(info_nce(image, text, model.scale, same))
    return {"contrast": torch.stack(losses).mean()}


def fusion_losses(model: Network, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """`match`, and `joint` where two pictures have several captions."""
    with torch.no_grad():
        image = model.image_modality(batch.image)
        text, query = (model.text_modality(item) for item in (batch.caption, batch.other))
    rows = torch.arange(len(batch.image), device=batch.same.device)
    scores = model.scale * text.vector @ image.vector.T
    wrong = wrong_pairs(scores, batch.same, generator)
    of_text, of_image = torch.cat([rows, wrong.text]), torch.cat([rows, wrong.image])
    texts, images = text.take(of_text), image.take(of_image)
    fused = model.fuse(texts, images)
    whole = torch.ones_like(wrong.found)
    logits = model.match_fused(fused, texts, images).logit
    true, counted = torch.cat([whole, ~whole]), torch.cat([whole, wrong.found])
    losses = {"match": matching_loss(logits, true, counted)}
    if int(batch.several.sum()) > 1:
        joint, query, same = _of_several(batch, fused.joint[: len(rows)], query.vector)
        losses["joint"] = info_nce(joint, query, model.scale, same)
    return losses


def _of_several(batch: Batch, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of pictures with several captions, and `other_same` of these."""
    several = batch.several
    return image[several], text[several], batch.other_same[several][:, several]


def task_losses(model: JointNetwork, batch: TaskBatch, _: torch.Generator) -> dict[str, Tensor]:
    """Of each task, see `decoder_losses`."""
    return decoder_losses(model, batch)
