"""What is learned on two frozen towers: heads into one space, a fusion, and what words a picture
speaks for.

    t = normalise( e + h_t(e) )                    e the text model's own vector, expanded
    v = normalise( h_v(x) + k(x) )                 x the image model's features
    k(x) = normalise( sum_m A_m e^(g (x.z_m - 1)) )       kernel ridge on landmarks z_m

e is what the text model says of a caption and what else was said of pictures with such a caption
(`expansion.py`). x is standardised, and square-rooted where features are never negative (Perronnin
et al., Improving the Fisher Kernel, 2010). h are linear plus one hidden layer, learned by contrast;
k is solved in closed form (Williams and Seeger, Using the Nystrom Method, 2001): it remembers
thousands of pictures without over-learning them, errs where h does not, and their sum is better
than both. A joint vector is the weighted mean of both vectors, or what a fusion of their tokens
makes of it, and hubs among them are shortened (`hubs.py`): the last dimension is theirs, v and t
have nothing there, and nothing but `indexed` has it at all.

Matching asks every token of the text: is it likelier of this picture than of any? p_w(x) is the
share of such pictures' captions that hold token w, the mean of what kernel ridge and a small
network say, q_w that of all pictures.

    logit = b + a v.t + sum_k c_k sum_{w in text, q_w in band k} log(p_w / q_w)
                      + d sum_{w not in text} log((1 - p_w) / (1 - q_w))

The bands keep usual words apart from rare ones, of which a picture says more for sure. a, b, c, d
as they serve best on samples that nothing was learned from (`solve.weigh_evidence`). x is here of
three looks: the mean of the features of the picture, of its mirror image and of its middle,
enlarged. Those few that matching is asked of may cost more than the many that are indexed. Vectors
are made before they meet; this evidence is not, and is what matching adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.config import FusionConfig
from chiasm.pipeline.model.fusion import Fusion, Modality
from chiasm.pipeline.two_tower.expansion import Expansion
from chiasm.pipeline.two_tower.hubness import Hubs

SURE = 1e-3  # q and what ridge says of p are kept so far from 0 and 1: it may step over either
BANDS = (0.004, 0.02, 0.2)  # where those of words end, by the share of captions that hold them
EVIDENCE = 4 + len(BANDS)  # bias, likeness, words there of each band, words absent


@dataclass(frozen=True)
class TwoTowerConfig:
    """Shapes, and what was chosen on samples held out.

    image, text: the frozen towers' names, whose fingerprints follow; widths: of pooled features and
    of tokens; root: are image features square-rooted; landmarks: M; text_landmarks: of expansion, 0
    where captions stay as they are; asked: captions by which hubs are known; words: V, how many
    tokens evidence is kept of; dim: E, of what is indexed; text_weight: of the text in the mean;
    hub_power: p of `hubs.py`; fusion: None where the mean was as good.
    """

    image: str
    image_fingerprint: str
    text: str
    text_fingerprint: str
    image_width: int
    patch_width: int
    text_width: int
    word_width: int
    root: bool = False
    landmarks: int = 6144
    text_landmarks: int = 4096
    asked: int = 4096
    words: int = 4096
    dim: int = 512
    image_hidden: int = 512
    text_hidden: int = 1024
    word_hidden: int = 512
    sharpness: float = 2.0
    text_weight: float = 0.5
    hub_power: float = 0.0
    fusion: FusionConfig | None = None

    @property
    def space(self) -> int:
        """E' = E - 1, the dimensions of heads, kernel and fusion."""
        return self.dim - 1

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for json."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> TwoTowerConfig:
        """The config that `to_json` told of; TypeError for unknown or missing fields."""
        plain = dict(told)
        fusion = plain.pop("fusion")
        return cls(**plain, fusion=FusionConfig(**fusion) if fusion else None)


class Head(nn.Module):
    """(B, D) -> (B, E): linear plus a hidden layer, both of the norm of x, with noise on it."""

    def __init__(
        self, width: int, hidden: int, dim: int, dropout: float = 0.0, noise: float = 0.0
    ) -> None:
        super().__init__()
        self.norm, self.noise = nn.LayerNorm(width), nn.Dropout(noise)
        self.skip = nn.Linear(width, dim, bias=False)
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout))
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, skipped: Tensor | None = None) -> Tensor:
        """skipped: what goes past the hidden layer, the norm of x where None."""
        normed = self.noise(self.norm(x))
        return self.out(self.hidden(normed)) + self.skip(normed if skipped is None else skipped)


class Heads(nn.Module):
    """The contrastive part: pooled features -> unit vectors."""

    def __init__(self, config: TwoTowerConfig, dropout: float = 0.0) -> None:
        super().__init__()
        noise = 0.6 * dropout
        self.image = Head(config.image_width, config.image_hidden, config.space, dropout, noise)
        self.text = Head(config.text_width, config.text_hidden, config.space, dropout)
        # The text model's own space is where all begins: it knows what texts are alike.
        with torch.no_grad():
            self.text.skip.weight.copy_(torch.eye(config.space, config.text_width))
        nn.init.zeros_(self.text.out.weight)
        nn.init.zeros_(self.text.out.bias)

    def images(self, x: Tensor) -> Tensor:
        """Rooted features (B, D) -> (B, E') unit rows."""
        return functional.normalize(self.image(x), dim=-1)

    def texts(self, x: Tensor) -> Tensor:
        """Pooled (B, D) -> (B, E') unit rows."""
        own = functional.normalize(x, dim=-1) * x.shape[-1] ** 0.5
        return functional.normalize(self.text(own, own), dim=-1)


class Kernel(nn.Module):
    """Features -> M likenesses to landmarks; what is solved on them is linear."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        width, size = config.image_width, config.landmarks
        self.sharpness = config.sharpness
        self.landmarks = nn.Parameter(torch.zeros(size, width), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.spread = nn.Parameter(torch.ones(width), requires_grad=False)
        self.vectors = nn.Parameter(torch.zeros(size, config.space), requires_grad=False)
        self.shares = nn.Parameter(torch.zeros(size, config.words), requires_grad=False)

    def scaled(self, x: Tensor) -> Tensor:
        """Rooted features (B, D), standardised feature by feature."""
        return (x - self.shift) / self.spread

    def standard(self, x: Tensor) -> Tensor:
        """The same as unit rows."""
        return functional.normalize(self.scaled(x), dim=-1)

    def likeness(self, z: Tensor) -> Tensor:
        """Unit rows (B, D) -> (B, M) in (0, 1]."""
        return torch.exp(self.sharpness * (z @ self.landmarks.T - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Rooted features (B, D) -> (B, M) in (0, 1]."""
        return self.likeness(self.standard(x))


class Words(nn.Module):
    """Standardised features (B, D) -> logits (B, V) of the share of captions with each word."""

    def __init__(self, config: TwoTowerConfig, learning: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Dropout(0.3 if learning else 0.0),
            nn.Linear(config.image_width, config.word_hidden),
            nn.GELU(),
            nn.Dropout(0.5 if learning else 0.0),
        )
        # All begins with what is usual, which `Learning` puts into the bias.
        self.weight = nn.Parameter(torch.zeros(config.words, config.word_hidden))
        self.bias = nn.Parameter(torch.zeros(config.words))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.net(x), self.weight, self.bias)


@dataclass(frozen=True)
class Seen:
    """What matching reads of B pictures: vectors (B, E'); there and absent (B, V), the log lifts of
    words."""

    vectors: Tensor
    there: Tensor
    absent: Tensor

    def __getitem__(self, rows: Tensor) -> Seen:
        return Seen(self.vectors[rows], self.there[rows], self.absent[rows])


class TwoTowerNetwork(nn.Module):
    """All of it; with dropout of the heads and `noise` on the fusion's tokens while it learns."""

    def __init__(self, config: TwoTowerConfig, dropout: float = 0.0, noise: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.noise = nn.Dropout(noise)
        self.heads = Heads(config, dropout)
        self.expansion = Expansion(config.text_landmarks, config.text_width, config.words)
        self.kernel = Kernel(config)
        self.hubs = Hubs(config.asked, config.space)
        self.words = Words(config, learning=dropout > 0)
        self.fusion: Fusion | None = None
        if config.fusion is not None:
            widths = (config.word_width, config.patch_width)
            self.fusion = Fusion(config.fusion, widths, config.space)
            self.fusion.begin()
        words = config.words
        self.word_ids = nn.Parameter(torch.zeros(words, dtype=torch.int64), requires_grad=False)
        self.usual = nn.Parameter(torch.full((words,), 0.5), requires_grad=False)  # q_w
        self.evidence = nn.Parameter(torch.zeros(EVIDENCE), requires_grad=False)

    def rooted(self, x: Tensor) -> Tensor:
        """Features of the image model, square-rooted if the config says so."""
        return x.clamp(min=0).sqrt() if self.config.root else x

    def image_vectors(self, pooled: Tensor) -> Tensor:
        """pooled (B, D) as the tower gave them -> (B, E') unit rows."""
        x = self.rooted(pooled)
        solved = functional.normalize(self.kernel(x) @ self.kernel.vectors, dim=-1)
        return functional.normalize(self.heads.images(x) + solved, dim=-1)

    def text_vectors(self, pooled: Tensor, held: Tensor) -> Tensor:
        """pooled (B, D) as the tower gave them, `held` of the same texts -> (B, E') unit rows."""
        return self.heads.texts(self.expansion(pooled, held))

    def mean(self, text: Tensor, image: Tensor) -> Tensor:
        """Vectors (B, E') of each -> their weighted mean, unit rows."""
        weight = self.config.text_weight
        return functional.normalize(weight * text + (1 - weight) * image, dim=-1)

    def text_modality(self, words: Tensor, mask: Tensor, vector: Tensor) -> Modality:
        """words (B, T, D'), mask (B, T), vector (B, E') -> what the fusion takes."""
        weight = 2 * self.config.text_weight  # the fusion begins as the mean of what it is given
        tokens = self.noise(functional.layer_norm(words, words.shape[-1:]))
        return Modality(tokens, mask, weight * vector)

    def image_modality(self, patches: Tensor, vector: Tensor) -> Modality:
        """patches (B, N, D'), vector (B, E') -> what the fusion takes."""
        tokens = self.noise(functional.layer_norm(self.rooted(patches), patches.shape[-1:]))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Modality(tokens, mask, 2 * (1 - self.config.text_weight) * vector)

    def fused(self, text: Modality, image: Modality) -> Tensor:
        """-> (B, E') float32 unit rows; needs a fusion."""
        assert self.fusion is not None, "a model that ships the mean"
        return self.fusion([text, image]).joint

    def indexed(self, joint: Tensor) -> Tensor:
        """Joint vectors (B, E'), mean or fused -> (B, E) unit rows, hubs shortened."""
        return self.hubs(joint, self.config.hub_power)

    def seen(self, pooled: Tensor) -> Seen:
        """pooled (B, D) of a closer look (`ImageTower.closely`) -> what it tells."""
        x = self.rooted(pooled)
        likeness = self.kernel(x)
        shares = self.usual + likeness @ self.kernel.shares
        shares = (shares.clamp(SURE, 1 - SURE) + self.words(self.kernel.scaled(x)).sigmoid()) / 2
        usual = self.usual.clamp(SURE, 1 - SURE)
        return Seen(
            self.image_vectors(pooled),
            torch.log(shares / usual),
            torch.log((1 - shares) / (1 - usual)),
        )

    def held(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of B texts -> (B, V) float32, 1 where the text holds the word."""
        place = {word: i for i, word in enumerate(self.word_ids.tolist())}
        held = torch.zeros(len(ids), len(place))
        for row, text in enumerate(ids):
            held[row, [place[i] for i in set(text) if i in place]] = 1
        return held.to(self.usual.device)

    def traits(self, text: Tensor, held: Tensor, seen: Seen) -> Tensor:
        """What matching weighs, of every text with every picture: vectors (T, E'), held (T, V),
        B pictures -> (T, B, EVIDENCE)."""
        band = torch.bucketize(self.usual, self.usual.new_tensor(BANDS))
        likeness = text @ seen.vectors.T
        words = [(held * (band == k)) @ seen.there.T for k in range(len(BANDS) + 1)]
        absent = (1 - held) @ seen.absent.T
        return torch.stack([torch.ones_like(likeness), likeness, *words, absent], dim=-1)

    def logits(self, traits: Tensor) -> Tensor:
        """(..., EVIDENCE) -> (...) log odds that the text tells of the picture."""
        return traits @ self.evidence
