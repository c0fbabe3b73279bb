"""What a batch is learned by: contrast, probes (pipeline/training/pocket/probes.py), matching and
the joint vector.
"""

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
from chiasm.pipeline.model.losses import contrast, facts_loss, info_nce, matching_loss
from chiasm.pipeline.model.matching import hard_negatives
from chiasm.pipeline.training.pocket.data import TrainBatch
from chiasm.pipeline.training.pocket.probes import Pairs, Probes

LACKING = 0.15  # share of pairs that are fused without their text, as of those without picture


class Objective(nn.Module):
    """The model, the probes, and the losses of a batch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = JointNetwork(config)
        self.probes = Probes(config.image.width, config.text, config.dim, config.fusion)

    def forward(
        self, batch: TrainBatch, fusing: bool, chance: torch.Generator
    ) -> dict[str, Tensor]:
        """-> float32 scalars, those of `aligned`, or of `joined` where the stage is `fusing`.
        chance: of the CPU, draws wrong pairs and what is lacking.
        """
        if not fusing:
            return self.aligned(batch)
        model, device = self.model, self.model.log_scale.device
        with torch.no_grad():
            image = model.image_modality(_moved(batch.pixels, device))
            texts = [model.text_modality(_moved(told.ids, device)) for told in batch.told]
        truths = [_moved(told.also_true, device) for told in batch.told]
        first = batch.told[0]
        kinds = [_moved(each, device) for each in (first.kinds, batch.kinds, first.lies)]
        return self.joined(texts, truths, image, kinds, chance)

    def aligned(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Of the towers alone: `contrast`, the mean InfoNCE of the captions; `facts`, the probes'
        loss on patches; `readings` and `words`, their mean losses on vectors; `lies`, that of the
        captions on relations.
        """
        model, device = self.model, self.model.log_scale.device
        image = model.image_modality(_moved(batch.pixels, device))
        shown = _moved(batch.kinds, device)
        readings = [self.probes.read(image.vector, shown, _moved(batch.bag, device))]
        contrasts, lies = [], []
        for told in batch.told:
            text = model.text_modality(_moved(told.ids, device))
            true = _moved(told.also_true, device)
            contrasts.append(info_nce(image.vector, text.vector, model.scale, true))
            kinds, bag = _moved(told.kinds, device), _moved(told.bag, device)
            readings.append(self.probes.read(text.vector, kinds, bag))
            lies.append(self.probes.relating(text, _moved(told.lies, device)))
        places, background = self.probes(image.tokens)
        stage = functional.cross_entropy(background.float(), _moved(batch.background, device))
        return {
            "contrast": torch.stack(contrasts).mean(),
            "facts": facts_loss(places, _moved(batch.facts, device)) + stage,
            "readings": torch.stack([kinds for kinds, _ in readings]).mean(),
            "words": torch.stack([words for _, words in readings]).mean(),
            "lies": torch.stack(lies).mean(),
        }

    def joined(
        self,
        texts: list[Modality],
        truths: list[Tensor],
        image: Modality,
        kinds: Sequence[Tensor],
        chance: torch.Generator,
    ) -> dict[str, Tensor]:
        """Of the first captions with their pictures: `match`, told from as many wrong pairs, the
        hardest likeliest; `joint`, InfoNCE of the joint vectors with the vectors of the other
        captions; `align`, InfoNCE of words and patches by late interaction; and those of
        `Probes.compared`.

        texts: two captions of each picture; truths (B, B) bool of each, caption i is true of
        picture j; kinds: what the first captions say of each kind, what the pictures show,
        and how the captions have kinds lie to each other.
        """
        (text, query), (true, true_query) = texts, truths
        model, size, device = self.model, len(true), true.device
        rows = torch.arange(size, device=device)
        wrong = wrong_pairs(model.scale * text.vector @ image.vector.T, true, chance)
        lacking = torch.rand(size, generator=chance).to(device)
        said, seen = lacking >= LACKING, lacking < 1 - LACKING
        whole = torch.ones_like(said)
        of_text, of_image = torch.cat([rows, wrong.text]), torch.cat([rows, wrong.image])
        fused = model.fuse(
            text.take(of_text).where(torch.cat([said, whole])),
            image.take(of_image).where(torch.cat([seen, whole])),
        )
        fusion = model.fusion
        assert fusion is not None and model.matching is not None
        counted = torch.cat([said & seen, wrong.found])
        # In fused tokens of one sequence for all, patches are no longer to be told from words.
        words = None if fusion.mix.merges else text.tokens.shape[1]
        told, shown, lies = kinds
        pairs = Pairs(told[of_text], lies[of_text], shown[of_image], counted)
        true_pair = torch.cat([whole, ~whole])
        return {
            "match": matching_loss(model.matching(fused).logit, true_pair, counted),
            "align": contrast(self.probes.alikeness(fusion, text, image), true),
            "joint": info_nce(fused.joint[:size], query.vector, model.scale, true_query),
            **self.probes.compared(fused, words, pairs),
        }


@dataclass(frozen=True)
class WrongPairs:
    """Rows of texts and of pictures, (B,) int64 each, that do not belong together; found (B,) bool:
    False where the batch had no wrong pair to give.
    """

    text: Tensor
    image: Tensor
    found: Tensor


def wrong_pairs(scores: Tensor, true: Tensor, chance: torch.Generator) -> WrongPairs:
    """For every other row its caption with a wrong picture, for the rest its picture with a wrong
    caption, by chance.

    scores (B, B): caption i with picture j; true (B, B) bool, as in `info_nce`.
    """
    rows = torch.arange(len(scores), device=scores.device)
    true = true | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    scores = scores.detach()
    picture, picture_found = hard_negatives(scores, true, chance)
    caption, caption_found = hard_negatives(scores.T, true.T, chance)
    keep_text = (torch.rand(len(scores), generator=chance) < 0.5).to(scores.device)
    return WrongPairs(
        text=torch.where(keep_text, rows, caption),
        image=torch.where(keep_text, picture, rows),
        found=torch.where(keep_text, picture_found, caption_found),
    )


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
