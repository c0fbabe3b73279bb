"""Linear probes as auxiliary losses: towers and fusion learn from them long before they could from
contrast and matching alone; none is shipped.

Of patch tokens: what is in each place. Of vectors: what kinds there are. Of captions: the spatial
relations that they state. Of pooled fused tokens, of fused patches and of fused words: where a text
and a picture disagree. Late interaction aligns words and patches in one space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.attention import Attention
from chiasm.pipeline.model.config import FusionConfig, TextConfig
from chiasm.pipeline.model.fusion import Fused, Fusion, Modality
from chiasm.pipeline.model.losses import (
    attribute_loss,
    bag_of_words_loss,
    late_interaction,
    matching_loss,
    target_counts,
)
from chiasm.pipeline.model.pooling import Pool
from chiasm.pipeline.scenes.claims import RELATIONS
from chiasm.pipeline.scenes.world import WORLD_1, World
from chiasm.pipeline.training.distributed import mean_over_processes
from chiasm.pipeline.training.pocket.targets import (
    UNKNOWN,
    place_classes,
    reading_classes,
    words_of,
)


@dataclass(frozen=True)
class Pairs:
    """Targets of B pairs of a text and a picture, matching or not.

    text_kinds, image_kinds (B, kinds, readings) int64, as `caption_kinds` and `scene_kinds`;
    relations (B, kinds, 2) int64, as `caption_relations`; counted (B,) bool, which pairs the losses
    are over.
    """

    text_kinds: Tensor
    relations: Tensor
    image_kinds: Tensor
    counted: Tensor

    @cached_property
    def disagreement(self) -> tuple[Tensor, Tensor]:
        """`disagreement` of them; unknown for pairs that are not counted."""
        differ, known = disagreement(self.text_kinds, self.relations, self.image_kinds)
        return differ, known & self.counted[:, None, None]


class PerKind(nn.Module):
    """A linear probe a kind: of what a learned query attends to in a sequence."""

    def __init__(self, kinds: int, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, kinds, width))
        self.attention = Attention(width, heads)
        self.out = nn.Linear(width, classes)

    def forward(self, sequence: Modality) -> Tensor:
        """tokens (B, T, D) -> float32 (B, kinds, classes)."""
        query = self.query.expand(len(sequence.tokens), -1, -1)
        mask = (sequence.mask | ~sequence.present[:, None])[:, None, None, :]
        return self.out(self.attention(query, sequence.tokens, mask)).float()


class Probes(nn.Module):
    """Linear probes: of patch tokens, what is in each of 3 x 3 places, and the background; of
    vectors, what there is of each kind; of fused tokens, where text and picture disagree.
    """

    def __init__(
        self,
        width: int,
        text: TextConfig,
        dim: int,
        fusion: FusionConfig | None,
        world: World = WORLD_1,
    ) -> None:
        super().__init__()
        kinds = len(world.kinds)
        self.place_classes, self.readings = place_classes(world), reading_classes(world)
        # Ways in which a text and a picture can disagree about a kind: its readings, its relation.
        disagreements = len(self.readings) + 1
        # Classes that fused words predict of a kind: its row and column in the picture, the
        # relation that the text states, to which kind, and the disagreements.
        self.word_classes = (3, 3, len(RELATIONS), kinds, disagreements)
        self.places = nn.Linear(width, sum(self.place_classes))
        self.background = nn.Linear(width, len(world.backgrounds))
        self.kinds = nn.Linear(dim, kinds * sum(self.readings))
        self.bag = nn.Linear(dim, len(words_of(world)))
        self.relations_of_vector = nn.Linear(dim, kinds * len(RELATIONS))
        classes = len(RELATIONS) + kinds
        self.relations_of_tokens = PerKind(kinds, text.width, text.heads, classes)
        if fusion is not None:
            self.pool = Pool(fusion.width, fusion.heads)
            self.pooled_disagreement = nn.Linear(fusion.width, kinds * disagreements)
            self.patch_disagreement = nn.Linear(fusion.width, disagreements)
            classes = sum(self.word_classes)
            self.word_location = PerKind(kinds, fusion.width, fusion.heads, classes)
            self.word_weight = nn.Linear(text.width, 1)
            self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """tokens (B, N, D) -> one (B, 9, classes) tensor an attribute, and (B, backgrounds)."""
        places = self.places(by_place(tokens)).split(self.place_classes, dim=-1)
        return list(places), self.background(tokens.mean(1))

    def read(self, vectors: Tensor, kinds: Tensor, bag: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of unit vectors (B, E) of pictures or texts on `kinds` (B, kinds, readings) and
        `bag` (B, words). One probe for both modalities, which aligns them. -> two scalars.
        """
        # A unit vector's entries are of size E^-1/2: scaled to 1, as a layer's input should be.
        scaled = vectors.to(self.kinds.weight.dtype) * vectors.shape[-1] ** 0.5
        of_kinds = self.kinds(scaled).unflatten(-1, (-1, sum(self.readings)))
        of_readings = of_kinds.split(self.readings, dim=-1)
        return mean_attribute_loss(of_readings, kinds), bag_of_words_loss(self.bag(scaled), bag)

    def relation_loss(self, text: Modality, relations: Tensor) -> Tensor:
        """Loss of texts on the relations that they state: of tokens on the relation and the other
        kind, of vectors on the relation. By contrast alone the text tower drops the words of
        relations, and a fusion on top of it could not separate left from right.

        relations (B, kinds, 2). -> scalar.
        """
        kinds = relations.shape[1]
        tokens = self.relations_of_tokens(text).split((len(RELATIONS), kinds), dim=-1)
        scaled = (
            text.vector.to(self.relations_of_vector.weight.dtype) * text.vector.shape[-1] ** 0.5
        )
        vector = self.relations_of_vector(scaled).unflatten(-1, (kinds, -1))
        return mean_attribute_loss(tokens, relations) + mean_attribute_loss(
            [vector], relations[..., :1]
        )

    def pair_losses(self, fused: Fused, words: int | None, pairs: Pairs) -> dict[str, Tensor]:
        """Losses of fused tokens on where a text and a picture disagree: `discord`, of all tokens;
        `ground`, of patches; `where` and `follow`, of words, see `location_losses`.

        words: how many of the tokens, the first, are the text's, the others being patches; None
        where they were merged into one sequence. -> scalars; no `ground` of a merged sequence.
        """
        differ, known = pairs.disagreement
        logits = self.disagreement_logits(fused).view_as(differ)
        losses = {"discord": matching_loss(logits, differ, known)}
        if words is not None:
            losses["ground"] = self.patch_loss(fused.tokens[:, words:], pairs)
        of_text = Modality(fused.tokens[:, :words], fused.mask[:, :words], fused.joint)
        losses["where"], losses["follow"] = self.location_losses(of_text, pairs)
        return losses

    def disagreement_logits(self, fused: Fused) -> Tensor:
        """Fused tokens (B, T, D) -> float32 logits (B, kinds x disagreements)."""
        pooled = self.pool(fused.tokens, fused.mask[:, None, None, :])
        return self.pooled_disagreement(pooled).float()

    def patch_loss(self, patches: Tensor, pairs: Pairs) -> Tensor:
        """Loss of fused patches (B, N, D), each thing's own, on whether the text names its kind and
        on how the two disagree about it. -> scalar, the mean over the disagreements.
        """
        kinds = pairs.image_kinds
        row, kind = (kinds[..., 0] == 1).nonzero(as_tuple=True)  # of all things of the batch
        place = kinds[row, kind, -2] * 3 + kinds[row, kind, -1]
        logits = self.patch_disagreement(by_place(patches)[row, place]).float()  # (things, ways)
        differ, known = (item[row, kind] for item in pairs.disagreement)
        differ[:, 0], known[:, 0] = pairs.text_kinds[row, kind, 0] == 1, pairs.counted[row]
        return _mean_of_readings(logits, differ, known)

    def location_losses(self, words: Modality, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Losses of fused words, for each kind that the text names: on where the picture has it and
        the relation that the text states of it; and on how the two disagree about it. To check a
        relation takes the locations of both things.

        -> two scalars, the sum of the mean cross entropies of location and relation, and the mean
        over the disagreements.
        """
        *logits, disagree = self.word_location(words).split(self.word_classes, dim=-1)
        targets = torch.cat([pairs.image_kinds[..., -2:], pairs.relations], dim=-1)  # (B, kinds, 4)
        named = ((pairs.text_kinds[..., 0] == 1) & pairs.counted[:, None])[..., None]
        differ, known = pairs.disagreement
        return (
            attribute_loss(logits, targets.masked_fill(~named, UNKNOWN)),
            _mean_of_readings(disagree, differ, known & named),
        )

    def token_similarity(self, fusion: Fusion, text: Modality, image: Modality) -> Tensor:
        """Late interaction of all captions with all pictures, of the fusion's input tokens.
        -> (B, C) logits. The weight of a word is learned; sums are divided by sqrt(length)."""
        words, patches = (
            functional.normalize(fusion.project(i, item.tokens).float(), dim=-1)
            for i, item in enumerate((text, image))
        )
        weight = functional.softplus(self.word_weight(text.tokens).squeeze(-1).float()) * text.mask
        weight = weight / text.mask.sum(1, keepdim=True).clamp(min=1).sqrt()
        return self.log_scale.exp() * late_interaction(words, patches, weight)


def mean_attribute_loss(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """`attribute_loss` of this process's rows of a batch, the mean of which over all processes is
    that of the whole batch: the rows of one may have more targets than those of another."""
    return attribute_loss(logits, targets, mean_over_processes(target_counts(targets)))


def _mean_of_readings(logits: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """The mean of `matching_loss` over the last dimension, each with equal weight."""
    item = zip(logits.unbind(-1), true.unbind(-1), counted.unbind(-1), strict=True)
    return torch.stack([matching_loss(*reading) for reading in item]).mean()


def by_place(tokens: Tensor) -> Tensor:
    """Patches (B, N, D), N a square -> the mean of those in each of 3 x 3 places, (B, 9, D)."""
    side = math.isqrt(tokens.shape[1])
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))  # (B, D, side, side)
    return functional.adaptive_avg_pool2d(grid, 3).flatten(2).transpose(1, 2)


def disagreement(
    text_kinds: Tensor, relations: Tensor, image_kinds: Tensor
) -> tuple[Tensor, Tensor]:
    """Where what a caption states of each kind is not what the picture shows; see `Pairs`.

    -> bool (B, kinds, disagreements), the last of them in the kind's relation; and bool of the same
    shape, where it is known: what the caption omits cannot disagree, nor can the colour of what the
    picture does not show.
    """
    known = (text_kinds >= 0) & (image_kinds >= 0)
    known[..., 0] = text_kinds[..., 0] == 1  # a caption states what there is, never what is not
    relation, other = relations.unbind(-1)
    row, column = image_kinds[..., -2], image_kinds[..., -1]
    other_row, other_column = (place.gather(1, other.clamp(min=0)) for place in (row, column))
    related = torch.stack(
        [column < other_column, column > other_column, row < other_row, row > other_row], dim=-1
    )
    relation_holds = related.gather(-1, relation.clamp(min=0)[..., None])
    both = ((relation >= 0) & (row >= 0) & (other_row >= 0))[..., None]
    return (
        torch.cat([text_kinds != image_kinds, ~relation_holds], dim=-1),
        torch.cat([known, both], dim=-1),
    )
