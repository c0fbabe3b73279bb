"""Linear readings that teach the towers to see and to read, and the fusion to compare, long before
contrast and matching alone could; none is shipped.

Of patch tokens: what lies in each place. Of vectors: what there is. Of captions: how they have
things lie to each other. Of what is pooled from fused tokens, of fused patches and of fused words:
where a text and a picture disagree. Late interaction brings words and patches into one space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.attention import Attention
from chiasm.pipeline.model.config import FusionConfig, TextConfig
from chiasm.pipeline.model.fusion import Fused, Fusion, Modality
from chiasm.pipeline.model.losses import bag_loss, facts_loss, late_interaction, matching_loss
from chiasm.pipeline.model.pooling import Pool
from chiasm.pipeline.scenes.claims import RELATIONS
from chiasm.pipeline.scenes.world import BACKGROUNDS, KINDS
from chiasm.pipeline.training.pocket.targets import CLASSES, READINGS, UNKNOWN, WORDS

HEARD = (3, 3, len(RELATIONS), len(KINDS))  # row and column seen, relation told, to what kind
DISCORDS = len(READINGS) + 1  # what a text and a picture can disagree in of each kind


@dataclass(frozen=True)
class Pairs:
    """Texts beside pictures, right and wrong: what each is known to say.

    told, shown (B, kinds, readings) int64, as `kinds_told` and `kinds_shown`; lies (B, kinds, 2)
    int64, as `lies_told`; counted (B,) bool, which pairs to learn from.
    """

    told: Tensor
    lies: Tensor
    shown: Tensor
    counted: Tensor

    @cached_property
    def discord(self) -> tuple[Tensor, Tensor]:
        """`discord` of them; what is of pairs that do not count is not known."""
        differ, known = discord(self.told, self.lies, self.shown)
        return differ, known & self.counted[:, None, None]


class PerKind(nn.Module):
    """What a sequence says of each kind: asked by a learned query, answered by a linear reading."""

    def __init__(self, width: int, heads: int, answers: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, len(KINDS), width))
        self.attention = Attention(width, heads)
        self.answer = nn.Linear(width, answers)

    def forward(self, sequence: Modality) -> Tensor:
        """tokens (B, T, D) -> float32 (B, kinds, answers)."""
        query = self.query.expand(len(sequence.tokens), -1, -1)
        seen = (sequence.mask | ~sequence.there[:, None])[:, None, None, :]
        return self.answer(self.attention(query, sequence.tokens, seen)).float()


class Probes(nn.Module):
    """Linear readings: of patch tokens, what lies in each of 3 x 3 places, and on what; of vectors,
    what there is of each kind; of fused tokens, pooled, where text and picture disagree.
    """

    def __init__(self, width: int, text: TextConfig, dim: int, fusion: FusionConfig | None) -> None:
        super().__init__()
        self.places = nn.Linear(width, sum(CLASSES))
        self.background = nn.Linear(width, len(BACKGROUNDS))
        self.kinds = nn.Linear(dim, len(KINDS) * sum(READINGS))
        self.bag = nn.Linear(dim, len(WORDS))
        self.lies_of_vector = nn.Linear(dim, len(KINDS) * len(RELATIONS))
        self.lies_of_tokens = PerKind(text.width, text.heads, len(RELATIONS) + len(KINDS))
        if fusion is not None:
            self.pool = Pool(fusion.width, fusion.heads)
            self.discord = nn.Linear(fusion.width, len(KINDS) * DISCORDS)
            self.ground = nn.Linear(fusion.width, DISCORDS)
            self.heard = PerKind(fusion.width, fusion.heads, sum(HEARD) + DISCORDS)
            self.telling = nn.Linear(text.width, 1)
            self.log_sharpness = nn.Parameter(torch.tensor(2.0))

    def forward(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """tokens (B, N, D) -> one (B, 9, classes) tensor an attribute, and (B, backgrounds)."""
        places = self.places(by_place(tokens)).split(CLASSES, dim=-1)
        return list(places), self.background(tokens.mean(1))

    def read(self, vectors: Tensor, kinds: Tensor, bag: Tensor) -> tuple[Tensor, Tensor]:
        """How badly unit vectors (B, E) of pictures or texts tell `kinds` (B, kinds, readings) and
        `bag` (B, words): the same readings of both, which draws them together. -> two scalars.
        """
        # A unit vector's entries are of size E^-1/2: scaled to 1, as a layer's input should be.
        scaled = vectors.to(self.kinds.weight.dtype) * vectors.shape[-1] ** 0.5
        of_kinds = self.kinds(scaled).unflatten(-1, (len(KINDS), -1)).split(READINGS, dim=-1)
        return facts_loss(of_kinds, kinds), bag_loss(self.bag(scaled), bag)

    def relating(self, text: Modality, lies: Tensor) -> Tensor:
        """How badly texts tell how they have each kind lie to what other: their tokens both, their
        vectors the relation. Contrast alone has towers forget the words of it, and nothing learned
        on top of them could then tell left from right.

        lies (B, kinds, 2). -> scalar.
        """
        tokens = self.lies_of_tokens(text).split((len(RELATIONS), len(KINDS)), dim=-1)
        scaled = text.vector.to(self.lies_of_vector.weight.dtype) * text.vector.shape[-1] ** 0.5
        vector = self.lies_of_vector(scaled).unflatten(-1, (len(KINDS), -1))
        return facts_loss(tokens, lies) + facts_loss([vector], lies[..., :1])

    def compared(self, fused: Fused, words: int | None, pairs: Pairs) -> dict[str, Tensor]:
        """What fused tokens know of texts beside pictures: `discord`, where the two disagree, of
        all tokens; `ground`, the same of patches; `where` and `follow`, see `followed`, of words.

        words: how many of the tokens, the first, are the text's, the others being patches; None
        where all have become one sequence. -> scalars; no `ground` of one sequence.
        """
        differ, known = pairs.discord
        differing = self.disagreement(fused).view_as(differ)
        losses = {"discord": matching_loss(differing, differ, known)}
        if words is not None:
            losses["ground"] = self.grounded(fused.tokens[:, words:], pairs)
        said = Modality(fused.tokens[:, :words], fused.mask[:, :words], fused.joint)
        losses["where"], losses["follow"] = self.followed(said, pairs)
        return losses

    def disagreement(self, fused: Fused) -> Tensor:
        """Fused tokens (B, T, D) -> float32 logits (B, kinds x discords), see `discord`."""
        pooled = self.pool(fused.tokens, fused.mask[:, None, None, :])
        return self.discord(pooled).float()

    def grounded(self, patches: Tensor, pairs: Pairs) -> Tensor:
        """How badly fused patches (B, N, D) tell of the thing that lies there whether the text
        tells of its kind, and in what the two then disagree. -> scalar, the mean over the discords.
        """
        shown = pairs.shown
        row, kind = (shown[..., 0] == 1).nonzero(as_tuple=True)  # of all things of the batch
        at = shown[row, kind, -2] * 3 + shown[row, kind, -1]
        guess = self.ground(by_place(patches)[row, at]).float()  # (things, discords)
        differ, known = (each[row, kind] for each in pairs.discord)
        differ[:, 0], known[:, 0] = pairs.told[row, kind, 0] == 1, pairs.counted[row]
        return _mean_of_readings(guess, differ, known)

    def followed(self, words: Modality, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """How badly fused words tell, asked of each kind that the text names, where the picture has
        it and how the text has it lie to what other kind; and in what the two disagree about it.
        A relation can be checked by who knows where both things are.

        -> two scalars, the sum of the mean cross entropies of HEARD, and the mean over the
        discords.
        """
        *guesses, disagree = self.heard(words).split((*HEARD, DISCORDS), dim=-1)  # (B, kinds, ...)
        facts = torch.cat([pairs.shown[..., -2:], pairs.lies], dim=-1)  # (B, kinds, 4)
        named = ((pairs.told[..., 0] == 1) & pairs.counted[:, None])[..., None]
        differ, known = pairs.discord
        return (
            facts_loss(guesses, facts.masked_fill(~named, UNKNOWN)),
            _mean_of_readings(disagree, differ, known & named),
        )

    def alikeness(self, fusion: Fusion, text: Modality, image: Modality) -> Tensor:
        """Late interaction of all captions with all pictures, of tokens as they enter the fusion.
        -> (B, C) logits. The weight of a word is learned, and a long text counts as its root."""
        words, patches = (
            functional.normalize(fusion.brought(i, each.tokens).float(), dim=-1)
            for i, each in enumerate((text, image))
        )
        weight = functional.softplus(self.telling(text.tokens).squeeze(-1).float()) * text.mask
        weight = weight / text.mask.sum(1, keepdim=True).clamp(min=1).sqrt()
        return self.log_sharpness.exp() * late_interaction(words, patches, weight)


def _mean_of_readings(guess: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """The mean of `matching_loss` over the last dimension, each reading weighing the same."""
    each = zip(guess.unbind(-1), true.unbind(-1), counted.unbind(-1), strict=True)
    return torch.stack([matching_loss(*reading) for reading in each]).mean()


def by_place(tokens: Tensor) -> Tensor:
    """Patches (B, N, D), N a square -> the mean of those in each of 3 x 3 places, (B, 9, D)."""
    side = math.isqrt(tokens.shape[1])
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))  # (B, D, side, side)
    return functional.adaptive_avg_pool2d(grid, 3).flatten(2).transpose(1, 2)


def discord(told: Tensor, lies: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Where what a caption says of each kind is not what the picture shows.

    told, shown (B, kinds, readings) int64, as `kinds_told` and `kinds_shown`; lies (B, kinds, 2)
    int64, as `lies_told`. -> bool (B, kinds, discords), the last of them how the kind lies to
    another; and where there is anything to say: what the caption leaves unsaid cannot disagree, nor
    can the colour of what the picture does not show.
    """
    known = (told >= 0) & (shown >= 0)
    known[..., 0] = told[..., 0] == 1  # a caption says what there is, never what there is not
    relation, other = lies.unbind(-1)
    row, column = shown[..., -2], shown[..., -1]
    there, across = (place.gather(1, other.clamp(min=0)) for place in (row, column))
    related = torch.stack([column < across, column > across, row < there, row > there], dim=-1)
    holds = related.gather(-1, relation.clamp(min=0)[..., None])
    both = (relation >= 0) & (row >= 0) & (there >= 0)
    return torch.cat([told != shown, ~holds], dim=-1), torch.cat([known, both[..., None]], dim=-1)
