"""What is learned on two frozen towers: heads into one space, a fusion, and word evidence.

    t = normalise( e + h_t(e) )                    e the text model's own vector, expanded
    v = normalise( h_v(x) + k(x) )                 x the image model's features
    k(x) = normalise( sum_m A_m e^(g (x.z_m - 1)) )       kernel ridge on landmarks z_m

e is a caption's vector after expansion (`expansion.py`). x is standardised, and square-rooted where
features are never negative (Perronnin et al., Improving the Fisher Kernel, 2010). h are linear plus
one hidden layer, trained by contrast. k is solved in closed form (Williams and Seeger, Using the
Nystrom Method, 2001): it fits thousands of pictures without overfitting. Its errors differ from
those of h, and their sum is better than either. A joint vector is the mean of both vectors, or the
output of a fusion of their tokens, after hubness reduction (`hubness.py`), which
owns the last dimension: v and t are 0 there, and only `reduce_hubness` adds it.

Matching weighs every token of the text: is it likelier of this picture than of any? p_w(x) is the
predicted share of such pictures' captions that contain token w. A small network and the same kernel
ridge predict it, and p_w is the mean of the two: their errors differ. q_w, the word's prior, is its
share over all pictures.

    logit = b + a v.t + sum_{w in text} c_w log(p_w / q_w)
                      + d sum_{w not in text} log((1 - p_w) / (1 - q_w))

c_w is one of four weights, by the band of q_w: rare words and common ones weigh apart. a, b, c, d
are fitted on samples held out (`closed_form.fit_match_weights`). x is here the mean over test-time
augmentation (`ImageTower.augmented`): matching scores few pairs, so each may cost more than a
vector that is indexed. Vectors are made independently of each other; this evidence is of the pair,
and is what matching adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.config import FusionConfig, of_fields, require_values
from chiasm.pipeline.model.fusion import Fusion, Modality
from chiasm.pipeline.two_tower.expansion import Expansion
from chiasm.pipeline.two_tower.hubness import HubnessReduction

CLAMP = 1e-3  # p and q are kept so far from 0 and 1: one word alone is never proof
BANDS = (0.004, 0.02, 0.2)  # upper bounds of the bands of q_w
MATCH_FEATURES = 4 + len(BANDS)  # bias, similarity, words present in each band, words absent


@dataclass(frozen=True)
class TwoTowerConfig:
    """Shapes, and what was selected on samples held out.

    image, text: the frozen towers' names, whose fingerprints follow; widths: of pooled features and
    of tokens; sqrt_features: are image features square-rooted; landmarks: M; text_landmarks: of
    expansion, 0 for none; query_bank: N of `hubness.py`; words: V, tokens with word evidence; dim:
    E, of what is indexed; text_weight: of the text in the mean, 0.5 but in formats of `earlier.py`;
    hubness_power: p of `hubness.py`; fusion: None where a mean was as good. ValueError for values
    that are no sizes.
    """

    image: str
    image_fingerprint: str
    text: str
    text_fingerprint: str
    image_width: int
    patch_width: int
    text_width: int
    word_width: int
    sqrt_features: bool = False
    landmarks: int = 6144
    text_landmarks: int = 4096
    query_bank: int = 4096
    words: int = 4096
    dim: int = 512
    image_hidden: int = 512
    text_hidden: int = 1024
    word_hidden: int = 512
    sharpness: float = 2.0
    text_weight: float = 0.5
    hubness_power: float = 0.0
    fusion: FusionConfig | None = None

    def __post_init__(self) -> None:
        require_values("", self, zero=("landmarks", "text_landmarks", "query_bank", "words"))
        if self.dim < 2:
            raise ValueError(f"dim: expected 2 or more, found {self.dim}")

    @property
    def space(self) -> int:
        """E' = E - 1, the dimensions of heads, kernel and fusion."""
        return self.dim - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name; `checkpoint` gives them the names they have in files."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> TwoTowerConfig:
        """Inverse of `to_dict`; ValueError for unknown or missing fields, see `of_fields`."""
        return of_fields(cls, plain, fusion=FusionConfig)


class Head(nn.Module):
    """(B, D) -> (B, E): linear plus a hidden layer, both of the norm of x, with input dropout."""

    def __init__(
        self, width: int, hidden: int, dim: int, dropout: float = 0.0, input_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm, self.input_dropout = nn.LayerNorm(width), nn.Dropout(input_dropout)
        self.skip = nn.Linear(width, dim, bias=False)
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout))
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, skip_input: Tensor | None = None) -> Tensor:
        """skip_input (B, D): input of the linear path, the norm of x where None."""
        normed = self.input_dropout(self.norm(x))
        linear = self.skip(normed if skip_input is None else skip_input)
        return self.out(self.hidden(normed)) + linear


class Heads(nn.Module):
    """The contrastive part: pooled features -> unit vectors."""

    def __init__(self, config: TwoTowerConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.image = Head(
            config.image_width, config.image_hidden, config.space, dropout, 0.6 * dropout
        )
        self.text = Head(config.text_width, config.text_hidden, config.space, dropout)
        # The text head starts as the identity: the text model's own space has similar texts close.
        with torch.no_grad():
            self.text.skip.weight.copy_(torch.eye(config.space, config.text_width))
        nn.init.zeros_(self.text.out.weight)
        nn.init.zeros_(self.text.out.bias)

    def images(self, x: Tensor) -> Tensor:
        """Output of `sqrt_features` (B, D) -> (B, E') unit rows."""
        return functional.normalize(self.image(x), dim=-1)

    def texts(self, x: Tensor) -> Tensor:
        """Expanded captions (B, D) -> (B, E') unit rows."""
        own = functional.normalize(x, dim=-1) * x.shape[-1] ** 0.5
        return functional.normalize(self.text(own, own), dim=-1)


class Kernel(nn.Module):
    """Features -> M similarities to landmarks; the ridge on top of them is linear."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        width, size = config.image_width, config.landmarks
        self.sharpness = config.sharpness
        self.landmarks = nn.Parameter(torch.zeros(size, width), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.std = nn.Parameter(torch.ones(width), requires_grad=False)
        self.vectors = nn.Parameter(torch.zeros(size, config.space), requires_grad=False)
        self.word_weights = nn.Parameter(torch.zeros(size, config.words), requires_grad=False)

    def standardised(self, x: Tensor) -> Tensor:
        """Output of `sqrt_features` (B, D) -> (B, D), standardised feature by feature."""
        return (x - self.mean) / self.std

    def unit_standardised(self, x: Tensor) -> Tensor:
        """The same as unit rows."""
        return functional.normalize(self.standardised(x), dim=-1)

    def similarity(self, z: Tensor) -> Tensor:
        """Unit rows (B, D) -> (B, M) in (0, 1]."""
        return torch.exp(self.sharpness * (z @ self.landmarks.T - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Output of `sqrt_features` (B, D) -> (B, M) in (0, 1]."""
        return self.similarity(self.unit_standardised(x))


class WordClassifier(nn.Module):
    """Standardised features (B, D) -> logits (B, V) of the share of captions with each word."""

    def __init__(self, config: TwoTowerConfig, training: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Dropout(0.3 if training else 0.0),
            nn.Linear(config.image_width, config.word_hidden),
            nn.GELU(),
            nn.Dropout(0.5 if training else 0.0),
        )
        # Starts at the words' priors, which the trainer puts into the bias.
        self.weight = nn.Parameter(torch.zeros(config.words, config.word_hidden))
        self.bias = nn.Parameter(torch.zeros(config.words))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.net(x), self.weight, self.bias)


@dataclass(frozen=True)
class ImageEvidence:
    """Input of matching, of B pictures: vectors (B, E'); present and absent (B, V), the log
    likelihood ratios of words that a text contains and of words that it does not."""

    vectors: Tensor
    present: Tensor
    absent: Tensor

    def __getitem__(self, rows: Tensor) -> ImageEvidence:
        return ImageEvidence(self.vectors[rows], self.present[rows], self.absent[rows])


class TwoTowerNetwork(nn.Module):
    """All of it. For training: dropout of the heads, token_dropout of the fusion's tokens. format:
    what `checkpoint` writes."""

    format = "chiasm two-tower model 8"

    def __init__(
        self, config: TwoTowerConfig, dropout: float = 0.0, token_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config = config
        self.token_dropout = nn.Dropout(token_dropout)
        self.heads = Heads(config, dropout)
        self.expansion = Expansion(config.text_landmarks, config.text_width, config.words)
        self.kernel = Kernel(config)
        self.hubness = HubnessReduction(config.query_bank, config.space)
        self.word_classifier = WordClassifier(config, training=dropout > 0)
        self.fusion: Fusion | None = None
        if config.fusion is not None:
            widths = (config.word_width, config.patch_width)
            self.fusion = Fusion(config.fusion, widths, config.space)
            self.fusion.reset_parameters()
        words = config.words
        self.word_ids = nn.Parameter(torch.zeros(words, dtype=torch.int64), requires_grad=False)
        self.word_prior = nn.Parameter(torch.full((words,), 0.5), requires_grad=False)  # q_w
        self.match_weights = nn.Parameter(torch.zeros(MATCH_FEATURES), requires_grad=False)

    def sqrt_features(self, x: Tensor) -> Tensor:
        """Features of the image model (..., D), square-rooted if the config says so."""
        return x.clamp(min=0).sqrt() if self.config.sqrt_features else x

    def image_vectors(self, pooled: Tensor) -> Tensor:
        """pooled (B, D) as the tower gave them -> (B, E') unit rows."""
        x = self.sqrt_features(pooled)
        by_kernel = functional.normalize(self.kernel(x) @ self.kernel.vectors, dim=-1)
        return functional.normalize(self.heads.images(x) + by_kernel, dim=-1)

    def text_vectors(self, pooled: Tensor, bag: Tensor) -> Tensor:
        """pooled (B, D) as the tower gave them, `bag_of_words` of the same texts (B, V) -> (B, E')
        unit rows."""
        return self.heads.texts(self.expansion(pooled, bag))

    def mean(self, text: Tensor, image: Tensor) -> Tensor:
        """Vectors (B, E') of each -> their weighted mean, unit rows."""
        weight = self.config.text_weight
        return functional.normalize(weight * text + (1 - weight) * image, dim=-1)

    def text_modality(self, words: Tensor, mask: Tensor, vector: Tensor) -> Modality:
        """words (B, T, D'), mask (B, T), vector (B, E') -> input of the fusion."""
        weight = 2 * self.config.text_weight  # an untrained fusion is the mean of its inputs
        tokens = self.token_dropout(functional.layer_norm(words, words.shape[-1:]))
        return Modality(tokens, mask, weight * vector)

    def image_modality(self, patches: Tensor, vector: Tensor) -> Modality:
        """patches (B, N, D'), vector (B, E') -> input of the fusion."""
        x = self.sqrt_features(patches)
        tokens = self.token_dropout(functional.layer_norm(x, patches.shape[-1:]))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Modality(tokens, mask, 2 * (1 - self.config.text_weight) * vector)

    def fuse(self, text: Modality, image: Modality) -> Tensor:
        """-> (B, E') float32 unit rows; needs a fusion."""
        assert self.fusion is not None, "a model whose joint vector is the mean"
        return self.fusion([text, image]).joint

    def reduce_hubness(self, joint: Tensor) -> Tensor:
        """Joint vectors (B, E'), mean or fused -> (B, E) unit rows, as they are indexed."""
        return self.hubness(joint, self.config.hubness_power)

    def image_evidence(self, pooled: Tensor) -> ImageEvidence:
        """pooled (B, D) after test-time augmentation (`ImageTower.augmented`) -> input of
        `match_features`."""
        shares = self.word_shares(self.sqrt_features(pooled))
        p, q = (item.clamp(CLAMP, 1 - CLAMP) for item in (shares, self.word_prior))
        return ImageEvidence(
            self.image_vectors(pooled), torch.log(p / q), torch.log((1 - p) / (1 - q))
        )

    def word_shares(self, x: Tensor) -> Tensor:
        """Output of `sqrt_features` (B, D) -> p_w (B, V), the predicted share of captions with each
        word."""
        by_kernel = self.word_prior + self.kernel(x) @ self.kernel.word_weights
        by_network = self.word_classifier(self.kernel.standardised(x)).sigmoid()
        return (by_kernel.clamp(CLAMP, 1 - CLAMP) + by_network) / 2

    def bag_of_words(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of B texts -> (B, V) float32, 1 where the text contains the word."""
        column = {word: i for i, word in enumerate(self.word_ids.tolist())}
        bag = torch.zeros(len(ids), len(column))
        for row, text in enumerate(ids):
            bag[row, [column[i] for i in set(text) if i in column]] = 1
        return bag.to(self.word_prior.device)

    def match_features(self, text: Tensor, bag: Tensor, image: ImageEvidence) -> Tensor:
        """Features of every text with every picture: vectors (T, E') and `bag_of_words` (T, V) of
        T texts, evidence of B pictures -> (T, B, MATCH_FEATURES)."""
        band = torch.bucketize(self.word_prior, self.word_prior.new_tensor(BANDS))
        similarity = text @ image.vectors.T
        words = [(bag * (band == k)) @ image.present.T for k in range(len(BANDS) + 1)]
        absent = (1 - bag) @ image.absent.T
        return torch.stack([torch.ones_like(similarity), similarity, *words, absent], dim=-1)

    def match_logits(self, features: Tensor) -> Tensor:
        """(..., MATCH_FEATURES) -> (...) log odds that the text describes the picture."""
        return features @ self.match_weights
