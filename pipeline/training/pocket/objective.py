"""Losses of a batch: contrastive, of the probes (probes.py), of matching, of joint vectors, of
image tokens, and of what the decoder writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.decoder import DecoderState
from chiasm.pipeline.model.fusion import JointParts, Modality
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.losses import (
    any_true_loss,
    contrastive_loss,
    info_nce,
    matching_loss,
)
from chiasm.pipeline.model.matching import hard_negatives
from chiasm.pipeline.model.tasks import TASKS, Head
from chiasm.pipeline.scenes.world import WORLD_1, World
from chiasm.pipeline.training.distributed import gather_rows, mean_over_processes
from chiasm.pipeline.training.pocket.data import CaptionTargets, TrainBatch
from chiasm.pipeline.training.pocket.image_tokens import PictureBatch, feature_loss, picture_losses
from chiasm.pipeline.training.pocket.packing import by_length
from chiasm.pipeline.training.pocket.probes import Pairs, Probes, mean_attribute_loss
from chiasm.pipeline.training.pocket.targets import UNKNOWN
from chiasm.pipeline.training.pocket.task_data import TaskBatch, TaskRows

MODALITY_DROPOUT = 0.15  # share of pairs fused without their text, and of those without picture


@dataclass(frozen=True)
class JointFeatures:
    """What joint vectors are fitted to: mean and read of B pairs, as in `JointParts`, and vectors
    (B, E) of as many queries, float16; true (B, A) bool, query i is true of picture j of all
    processes."""

    mean: Tensor
    read: Tensor
    queries: Tensor
    true: np.ndarray


class Objective(nn.Module):
    """The model, the probes, and the losses of a batch."""

    def __init__(self, config: ModelConfig, world: World = WORLD_1) -> None:
        super().__init__()
        self.model = JointNetwork(config)
        self.probes = Probes(config.image.width, config.text, config.dim, config.fusion, world)

    def forward(
        self,
        losses: Callable[[Objective, Any, torch.Generator], dict[str, Tensor]],
        batch: Any,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The losses of a stage (stages.py) of one of its batches -> float32 scalars by name.
        generator: of the CPU, draws hard negatives and dropped modalities."""
        return losses(self, batch, generator)

    def tower_losses(self, batch: TrainBatch, _: torch.Generator) -> dict[str, Tensor]:
        """First stage: `contrast`, the mean InfoNCE of the captions; `facts`, the probes' loss on
        patches; `readings` and `words`, their mean losses on vectors; `relations`, their loss on
        captions. The mean of each over processes that train together is the loss of all their rows
        in one batch, and so is its gradient.
        """
        model, device = self.model, self.model.log_scale.device
        image = model.image_modality(_moved(batch.pixels, device))
        kinds, bag = _moved(batch.kinds, device), _moved(batch.bag, device)
        readings = [self.probes.read(image.vector, kinds, bag)]
        contrasts, relations = [], []
        for caption in batch.captions:
            text = model.text_modality(_moved(caption.ids, device))
            contrasts.append(contrast(image.vector, text.vector, model.scale, caption, batch.first))
            kinds, bag = _moved(caption.kinds, device), _moved(caption.bag, device)
            readings.append(self.probes.read(text.vector, kinds, bag))
            relations.append(self.probes.relation_loss(text, _moved(caption.relations, device)))
        places, background = self.probes(image.tokens)
        target = _moved(batch.background, device)
        background_loss = functional.cross_entropy(background.float(), target)
        return {
            "contrast": torch.stack(contrasts).mean(),
            "facts": mean_attribute_loss(places, _moved(batch.places, device)) + background_loss,
            "readings": torch.stack([kinds for kinds, _ in readings]).mean(),
            "words": torch.stack([words for _, words in readings]).mean(),
            "relations": torch.stack(relations).mean(),
        }

    def fusion_losses(self, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Second stage, of the first captions with their pictures: `match`, on true pairs and as
        many hard negatives; `joint`, InfoNCE of the joint vectors with the vectors of the other
        captions; `align`, InfoNCE of words and patches by late interaction; and those of
        `Probes.pair_losses`.

        Of processes that train together, `joint` compares with the rows of all. Each draws its hard
        negatives among its own rows, and compares words with patches of those: tokens of all rows
        would have to be sent, some 50 times as much as vectors. So these losses are not those of
        one process with a batch as large.
        """
        model, device = self.model, self.model.log_scale.device
        with torch.no_grad():
            image = model.image_modality(_moved(batch.pixels, device))
            text, query = (model.text_modality(_moved(c.ids, device)) for c in batch.captions)
        first, second = batch.captions
        size = len(first.ids)
        true = _moved(first.also_true[:, batch.first : batch.first + size], device)
        rows = torch.arange(size, device=device)
        wrong = wrong_pairs(model.scale * text.vector @ image.vector.T, true, generator)
        draw = torch.rand(size, generator=generator).to(device)
        has_text, has_image = draw >= MODALITY_DROPOUT, draw < 1 - MODALITY_DROPOUT
        whole = torch.ones_like(has_text)
        of_text, of_image = torch.cat([rows, wrong.text]), torch.cat([rows, wrong.image])
        fused = model.fuse(
            text.take(of_text).where(torch.cat([has_text, whole])),
            image.take(of_image).where(torch.cat([has_image, whole])),
        )
        fusion = model.fusion
        assert fusion is not None and model.matching is not None
        counted = torch.cat([has_text & has_image, wrong.found])
        # In one merged sequence, patches cannot be separated from words.
        words = None if fusion.mixer.merges else text.tokens.shape[1]
        kinds = (first.kinds, batch.kinds, first.relations)
        text_kinds, image_kinds, relations = (_moved(item, device) for item in kinds)
        pairs = Pairs(text_kinds[of_text], relations[of_text], image_kinds[of_image], counted)
        true_pair = torch.cat([whole, ~whole])
        return {
            "match": matching_loss(model.matching(fused).logit, true_pair, counted),
            "align": contrastive_loss(self.probes.token_similarity(fusion, text, image), true),
            "joint": contrast(fused.joint[:size], query.vector, model.scale, second, batch.first),
            **self.probes.pair_losses(fused, words, pairs),
        }

    def joint_features(self, batch: TrainBatch, _: torch.Generator) -> JointFeatures:
        """Of the first captions with their pictures, and of the second ones, which ask for them."""
        model, device = self.model, self.model.log_scale.device
        with torch.no_grad():
            image = model.image_modality(_moved(batch.pixels, device))
            text, query = (model.text_modality(_moved(c.ids, device)) for c in batch.captions)
            parts = model.fuse(text, image).joint_parts
        # In half precision, as all of a stage is kept.
        read, queries = parts.read.half(), query.vector.half()
        return JointFeatures(parts.mean.half(), read, queries, batch.captions[1].also_true)

    def joint_losses(self, batch: JointFeatures, _: torch.Generator) -> dict[str, Tensor]:
        """Third stage: `joint`, the second captions searched among the joint vectors of the first
        captions with their pictures, those of all processes; any picture is right of which the
        caption is true."""
        model, fusion = self.model, self.model.fusion
        assert fusion is not None
        joint = gather_rows(fusion.join(JointParts(batch.mean.float(), batch.read)))
        true = _moved(batch.true, joint.device)
        return {"joint": any_true_loss(model.scale * batch.queries.float() @ joint.T, true)}

    def image_token_losses(self, batch: PictureBatch, _: torch.Generator) -> dict[str, Tensor]:
        """Fourth stage, of pictures through their codes: those of `picture_losses`, and `features`,
        that of `feature_loss` by the frozen image tower."""
        tokens = self.model.image_tokens
        assert tokens is not None
        pixels = _moved(batch.pixels, self.model.log_scale.device)
        drawn = tokens(pixels)
        features = feature_loss(self.model.image, drawn, pixels)
        return picture_losses(drawn, pixels) | {"features": features}

    def decoder_losses(self, batch: TaskBatch, _: torch.Generator) -> dict[str, Tensor]:
        """Fifth stage: see the function of this name."""
        return decoder_losses(self.model, batch)


def contrast(
    image: Tensor, text: Tensor, scale: Tensor, caption: CaptionTargets, first: int
) -> Tensor:
    """`info_nce` of this process's rows with the rows of all that train together: each caption
    against the pictures of all, each picture against the captions of all. The mean over processes
    is the loss of all rows in one batch, and so is its gradient, since it flows back to the process
    of each row (the local loss with gathered gradients of Ilharco et al., OpenCLIP, 2021).

    image, text (B, E) unit vectors; first: the number of the first row among those of all.
    """
    true = _moved(caption.also_true, image.device)  # (B, A)
    if true.shape[0] == true.shape[1]:
        return info_nce(image, text, scale, true)
    others_true = _moved(caption.others_true, image.device).T  # (B, A)
    own = first + torch.arange(len(text), device=text.device)
    sides = []
    for rows, columns, also_true in ((text, image, true), (image, text, others_true)):
        false_negative = also_true.scatter(1, own[:, None], False)
        logits = (scale * rows @ gather_rows(columns).T).masked_fill(false_negative, -torch.inf)
        sides.append(functional.cross_entropy(logits, own))
    return torch.stack(sides).mean()


def decoder_losses(model: JointNetwork, batch: TaskBatch) -> dict[str, Tensor]:
    """Of each task the mean cross entropy  -log p(next token)  over the tokens of
    all its targets, ends included and prefixes not. The mean over processes that train together
    is that of all their rows in one batch. A picture is encoded once, and so are its keys and
    values."""
    device, decoder = model.log_scale.device, model.decoder
    assert decoder is not None
    with torch.no_grad():
        image = model.image_modality(_moved(batch.pixels, device))
    pictures = decoder.start(None, image)
    losses = {}
    for task, rows in batch.tasks.items():
        tokens = torch.tensor(float(_target_tokens(model, task, rows)), device=device)
        count = mean_over_processes(tokens).clamp(min=1)
        if not len(rows.targets):  # no scene had an example; the others still count theirs
            # With a gradient, as that of a batch without any target has to be 0 too.
            losses[task] = 0 * next(decoder.parameters()).float().sum()
            continue
        if TASKS[task].head == "codes":
            losses[task] = _drawing_loss(model, rows, batch.pixels) / count
            continue
        parts = [
            _log_loss(model, part, image, pictures, TASKS[task].head) for part in by_length(rows)
        ]
        losses[task] = torch.stack(parts).sum() / count
    return losses


def _target_tokens(model: JointNetwork, task: str, rows: TaskRows) -> int:
    """How many ids the decoder is to write for some rows of a task."""
    if TASKS[task].head == "codes":
        assert model.image_tokens is not None
        return len(rows.targets) * model.image_tokens.config.tokens
    return int((rows.targets != UNKNOWN).sum())


def _log_loss(
    model: JointNetwork, rows: TaskRows, image: Modality, pictures: DecoderState, head: Head
) -> Tensor:
    """The sum of  -log p(next token)  over the targets of some rows; float32. image, pictures: all
    of the batch. A text that several rows read goes through its tower once."""
    device, decoder = model.log_scale.device, model.decoder
    assert decoder is not None
    of_rows = _moved(rows.pictures, device)
    state = pictures.take(of_rows)
    if rows.sources is not None:
        sources, at = np.unique(rows.sources, axis=0, return_inverse=True)
        with torch.no_grad():
            text = model.text_modality(_moved(sources, device)).take(_moved(at, device))
            source = model.source(text, image.take(of_rows))
        state = decoder.with_text(state, source)
    hidden, _state = decoder(_moved(rows.inputs, device), state)
    logits = decoder.logits(hidden, head).float().flatten(0, 1)
    targets = _moved(rows.targets, device).flatten()
    return functional.cross_entropy(logits, targets, ignore_index=UNKNOWN, reduction="sum")


def _drawing_loss(model: JointNetwork, rows: TaskRows, pixels: np.ndarray) -> Tensor:
    """The sum of  -log p(next code)  over the codes of the rows' pictures, which the decoder does
    not see; pixels uint8 (B, 3, S, S)."""
    device, decoder, tokens = model.log_scale.device, model.decoder, model.image_tokens
    assert decoder is not None and tokens is not None and rows.sources is not None
    with torch.no_grad():
        text = model.source(model.text_modality(_moved(rows.sources, device)), None)
        codes = tokens.encode(_moved(pixels[rows.pictures], device))
    first, _count = decoder.ids.range("codes")
    inputs = torch.cat([_moved(rows.inputs[:, :1], device), codes[:, :-1] + first], dim=1)
    hidden, _state = decoder(inputs, decoder.start(text, None), "codes")
    logits = decoder.logits(hidden, "codes").float()
    return functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum")


@dataclass(frozen=True)
class WrongPairs:
    """Rows of texts and of pictures, (B,) int64 each, that do not match; found (B,) bool:
    False where the batch had no wrong pair.
    """

    text: Tensor
    image: Tensor
    found: Tensor


def wrong_pairs(scores: Tensor, true: Tensor, generator: torch.Generator) -> WrongPairs:
    """Hard negatives: of each row at random its caption with a wrong picture, or its picture with a
    wrong caption.

    scores (B, B): caption i with picture j; true (B, B) bool, as in `info_nce`.
    """
    rows = torch.arange(len(scores), device=scores.device)
    true = true | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    scores = scores.detach()
    picture, picture_found = hard_negatives(scores, true, generator)
    caption, caption_found = hard_negatives(scores.T, true.T, generator)
    keep_text = (torch.rand(len(scores), generator=generator) < 0.5).to(scores.device)
    return WrongPairs(
        text=torch.where(keep_text, rows, caption),
        image=torch.where(keep_text, picture, rows),
        found=torch.where(keep_text, picture_found, caption_found),
    )


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
