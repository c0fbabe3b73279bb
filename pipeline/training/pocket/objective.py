"""Losses of a batch: contrastive, of the probes (probes.py), of matching and of joint vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.fusion import Modality
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.losses import attribute_loss, contrastive_loss, info_nce, matching_loss
from chiasm.pipeline.model.matching import hard_negatives
from chiasm.pipeline.training.pocket.data import TrainBatch
from chiasm.pipeline.training.pocket.probes import Pairs, Probes

MODALITY_DROPOUT = 0.15  # share of pairs fused without their text, and of those without picture


class Objective(nn.Module):
    """The model, the probes, and the losses of a batch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = JointNetwork(config)
        self.probes = Probes(config.image.width, config.text, config.dim, config.fusion)

    def forward(
        self, batch: TrainBatch, fusing: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """-> float32 scalars, those of `tower_losses`, or of `fusion_losses` in the second stage.
        generator: of the CPU, draws hard negatives and dropped modalities.
        """
        if not fusing:
            return self.tower_losses(batch)
        model, device = self.model, self.model.log_scale.device
        with torch.no_grad():
            image = model.image_modality(_moved(batch.pixels, device))
            texts = [model.text_modality(_moved(c.ids, device)) for c in batch.captions]
        truths = [_moved(caption.also_true, device) for caption in batch.captions]
        first = batch.captions[0]
        kinds = [_moved(item, device) for item in (first.kinds, batch.kinds, first.relations)]
        return self.fusion_losses(texts, truths, image, kinds, generator)

    def tower_losses(self, batch: TrainBatch) -> dict[str, Tensor]:
        """First stage: `contrast`, the mean InfoNCE of the captions; `facts`, the probes' loss on
        patches; `readings` and `words`, their mean losses on vectors; `relations`, their loss on
        captions.
        """
        model, device = self.model, self.model.log_scale.device
        image = model.image_modality(_moved(batch.pixels, device))
        kinds, bag = _moved(batch.kinds, device), _moved(batch.bag, device)
        readings = [self.probes.read(image.vector, kinds, bag)]
        contrasts, relations = [], []
        for caption in batch.captions:
            text = model.text_modality(_moved(caption.ids, device))
            true = _moved(caption.also_true, device)
            contrasts.append(info_nce(image.vector, text.vector, model.scale, true))
            kinds, bag = _moved(caption.kinds, device), _moved(caption.bag, device)
            readings.append(self.probes.read(text.vector, kinds, bag))
            relations.append(self.probes.relation_loss(text, _moved(caption.relations, device)))
        places, background = self.probes(image.tokens)
        target = _moved(batch.background, device)
        background_loss = functional.cross_entropy(background.float(), target)
        return {
            "contrast": torch.stack(contrasts).mean(),
            "facts": attribute_loss(places, _moved(batch.places, device)) + background_loss,
            "readings": torch.stack([kinds for kinds, _ in readings]).mean(),
            "words": torch.stack([words for _, words in readings]).mean(),
            "relations": torch.stack(relations).mean(),
        }

    def fusion_losses(
        self,
        texts: list[Modality],
        truths: list[Tensor],
        image: Modality,
        kinds: Sequence[Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Second stage, of the first captions with their pictures: `match`, on true pairs and as
        many hard negatives; `joint`, InfoNCE of the joint vectors with the vectors of the other
        captions; `align`, InfoNCE of words and patches by late interaction; and those of
        `Probes.pair_losses`.

        texts: two captions of each picture; truths (B, B) bool of each, caption i is true of
        picture j; kinds: `caption_kinds` of the first captions, `scene_kinds`, and
        `caption_relations` of the first captions.
        """
        (text, query), (true, true_query) = texts, truths
        model, size, device = self.model, len(true), true.device
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
        text_kinds, image_kinds, relations = kinds
        pairs = Pairs(text_kinds[of_text], relations[of_text], image_kinds[of_image], counted)
        true_pair = torch.cat([whole, ~whole])
        return {
            "match": matching_loss(model.matching(fused).logit, true_pair, counted),
            "align": contrastive_loss(self.probes.token_similarity(fusion, text, image), true),
            "joint": info_nce(fused.joint[:size], query.vector, model.scale, true_query),
            **self.probes.pair_losses(fused, words, pairs),
        }


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
