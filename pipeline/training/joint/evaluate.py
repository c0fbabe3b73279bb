"""What ships, chosen on pictures held out, and every figure of the report, with standard errors.

    text_to_image   a picture by each of its captions
    image, text, mean, joint, encoder_joint   each picture with its first caption, by its others
    matching        a caption with its picture and with a wrong one; the first 20 matched again

Of the pictures that are not trained on, half choose the weight of the best weighted mean, by how
much the learned part of the joint vector is shrunk, and how matching is weighed; the other half are
measured on. A joint vector that is not first more often there than that mean, by more than one
standard error, does not ship; the mean does. Pictures are independent, captions of one picture are
not: errors are of sums over pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.metrics import ranks_of, reordered, right_at, signs_right, top_k
from chiasm.pipeline.model.frozen_joint import FrozenJointNetwork
from chiasm.pipeline.model.fusion import Modality
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.matching import hard_negatives
from chiasm.pipeline.training.joint.data import HELD_OUT, Samples, equal_to
from chiasm.pipeline.training.joint.objective import Network
from chiasm.pipeline.training.logit_fits import fit_bias, fit_conditional_logit
from chiasm.pipeline.training.paired import (
    TEXT_WEIGHTS,
    named_share,
    recalls_with_errors,
    wins_by_one_standard_error,
)

MAX_GALLERY = 1000  # pictures: the number of scores grows as their square
CANDIDATES = 20  # of a caption, matched again, as `search --rerank match:20` does
BLOCK = 256  # rows of one forward pass
KS = (1, 10)  # of the recalls of the report
# Factors of the learned part's matrix, of which the best is taken; of equals the smallest. What is
# learned of some thousand pictures is too sure of itself.
SHRINKS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Gallery:
    """N pictures held out, no two of them copies, and their C captions. image, first, last: of the
    pictures, their first and their last captions, N rows each; same (N, N) bool: the last captions
    of i and j are one, so that it is no wrong one of either, and in no row are all; captions
    (C, E), all of them; owner (C,) int64: the picture of each; is_first (C,) bool; encoder_joint
    (N, E): of a frozen encoder itself, with the first captions."""

    image: Modality
    first: Modality
    last: Modality
    same: np.ndarray
    captions: Tensor
    owner: np.ndarray
    is_first: np.ndarray
    encoder_joint: Tensor | None

    @property
    def queries(self) -> tuple[Tensor, np.ndarray]:
        """Captions but the first (Q, E), and the picture of each."""
        other = torch.from_numpy(~self.is_first).to(self.captions.device)
        return self.captions[other], self.owner[~self.is_first]


@torch.inference_mode()
def gallery_of(
    network: Network, samples: Samples, device: torch.device, fold: int = HELD_OUT
) -> Gallery:
    """At most MAX_GALLERY of the pictures of a fold, as an index would hold them."""
    rows = gallery_rows(samples, fold)
    counts = samples.counts[rows]
    owner = np.repeat(np.arange(len(rows)), counts)
    number = np.arange(len(owner)) - np.repeat(counts.cumsum() - counts, counts)

    def texts(of: np.ndarray, numbers: np.ndarray) -> Modality:
        # Blocks of texts differ in length; all are padded to the longest.
        found = samples.captions(of, numbers).to(device)
        return Modality.rows([network.text_modality(part) for part in found.split(BLOCK)])

    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    vectors = [
        texts(rows[owner[part]], number[part]).vector
        for part in np.array_split(np.arange(len(owner)), -(-len(owner) // BLOCK))
    ]
    own = isinstance(network, JointNetwork)
    return Gallery(
        image=Modality.rows(
            [network.image_modality(samples.images(block).to(device)) for block in blocks]
        ),
        first=texts(rows, np.zeros_like(rows)),
        last=texts(rows, counts - 1),
        same=equal_to(samples.caption_numbers(rows, counts - 1)),
        captions=torch.cat(vectors),
        owner=owner,
        is_first=number == 0,
        encoder_joint=None if own else samples.images(rows, "joint").to(device),
    )


def gallery_rows(samples: Samples, fold: int = HELD_OUT) -> np.ndarray:
    """Numbers of the samples of a fold that are measured on: one of each picture, at most
    MAX_GALLERY, drawn from all of them."""
    rows = np.flatnonzero(samples.fold == fold)
    rows = rows[np.sort(np.unique(samples.picture[rows], return_index=True)[1])]
    return np.sort(np.random.default_rng(0).permutation(rows)[:MAX_GALLERY])


def held_out_r1(gallery: Gallery) -> float:
    """A picture by each of its captions: R@1."""
    return float(np.mean(_ranks(gallery.image.vector, gallery.captions, gallery.owner) < 1))


def best_weight(gallery: Gallery) -> float:
    """The one of TEXT_WEIGHTS whose mean of picture and first caption is first for most queries, of
    equals the smallest; 0.5 where no picture has another caption."""
    queries, owner = gallery.queries
    if not len(owner):
        return 0.5
    first = [int((_ranks(_mean(gallery, w), queries, owner) < 1).sum()) for w in TEXT_WEIGHTS]
    return TEXT_WEIGHTS[int(np.argmax(first))]


@torch.inference_mode()
def select(network: Network, tuning: Gallery, gallery: Gallery, seed: int) -> dict[str, Any]:
    """Leave the network with the joint vector that ships and with a calibrated bias of matching;
    -> the figures of the report. tuning: what chooses; gallery: what is measured on."""
    assert network.fusion is not None
    queries, owner = gallery.queries
    own = _ranks(gallery.image.vector, gallery.captions, gallery.owner)
    weight = best_weight(tuning)
    figures: dict[str, Any] = {
        "held_out": len(gallery.image.vector),
        "held_out_captions": len(gallery.owner),
        "text_to_image": recalls_with_errors(own, gallery.owner, KS),
        "queries": len(owner),
        "text_weight": weight,
    }
    ships = False
    if len(owner):
        figures["shrink"] = _shrink(network, tuning)
        ways = {
            "image": gallery.image.vector,
            "text": gallery.first.vector,
            "mean": _mean(gallery, weight),
            "joint": _fused(network, gallery),
        }
        if gallery.encoder_joint is not None:
            ways["encoder_joint"] = gallery.encoder_joint
        ranks = {name: _ranks(vectors, queries, owner) for name, vectors in ways.items()}
        figures |= {name: recalls_with_errors(of_way, owner, KS) for name, of_way in ranks.items()}
        ships = wins_by_one_standard_error(ranks["joint"] < 1, ranks["mean"] < 1, owner)
    figures["joint_ships"] = ships
    if not ships:
        network.fusion.reset_to_mean((weight, 1 - weight))
    _calibrate(network, tuning, seed)
    return figures | {"matching": matching_figures(network, gallery, seed)}


def _shrink(network: Network, tuning: Gallery) -> float:
    """Multiply the matrix of the learned part by the best one of SHRINKS; -> it."""
    assert network.fusion is not None
    matrix, (queries, owner) = network.fusion.residual.weight, tuning.queries
    learned = matrix.clone()
    first = []
    for shrink in SHRINKS if len(owner) else (1.0,):
        matrix.copy_(shrink * learned)
        ranks = _ranks(_fused(network, tuning), queries, owner) if len(owner) else np.zeros(0)
        first.append(int((ranks < 1).sum()))
    best = SHRINKS[int(np.argmax(first))] if len(owner) else 1.0
    matrix.copy_(best * learned)
    return best


def _calibrate(network: Network, tuning: Gallery, seed: int) -> None:
    """On top of a frozen encoder: weigh cosine and what is learned by conditional logit, of each
    caption's own picture among those that are nearest to it. Then move the bias to where true pairs
    and hard negatives are best told apart."""
    if isinstance(network, FrozenJointNetwork):
        similarity = (tuning.last.vector @ tuning.image.vector.T).cpu().numpy()
        wrong = (~tuning.same).sum(axis=1)
        count = min(CANDIDATES, 1 + int(wrong.max()))
        rows = np.flatnonzero(wrong >= count - 1)
        ranked = np.where(tuning.same, -np.inf, similarity)
        np.fill_diagonal(ranked, np.inf)  # its own before all others
        candidates = top_k(ranked[rows], count)
        network.mix_match(cosine=0.0, learned=1.0)
        learned = _pair_logits(network, tuning, rows, candidates)
        cosine = np.take_along_axis(similarity[rows], candidates, axis=1)
        weights = fit_conditional_logit(np.stack([cosine, learned], axis=-1).astype(np.float64))
        network.mix_match(*weights.tolist())
    logits, true = _true_and_wrong(network, tuning, seed)
    network.add_match_bias(fit_bias(logits.ravel(), true.ravel()))


def _true_and_wrong(network: Network, gallery: Gallery, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (2, N) of the last captions with their pictures, and with wrong ones, each drawn as
    training draws hard negatives; which are true, (2, N) bool."""
    size = len(gallery.image.vector)
    rows = torch.arange(size, device=gallery.captions.device)
    similarity = gallery.last.vector @ gallery.image.vector.T
    same = torch.from_numpy(gallery.same).to(rows.device)
    generator = torch.Generator().manual_seed(seed)
    wrong, _ = hard_negatives(network.scale * similarity, same, generator)
    logits = np.stack([_logits(network, gallery, rows, other) for other in (rows, wrong)])
    return logits, np.array([[True], [False]]).repeat(size, axis=1)


@torch.inference_mode()
def matching_figures(network: Network, gallery: Gallery, seed: int) -> dict[str, float]:
    """How often a logit has the right sign, and what matching again adds; with errors."""
    logits, true = _true_and_wrong(network, gallery, seed)
    own = np.arange(logits.shape[1])
    similarity = (gallery.last.vector @ gallery.image.vector.T).cpu().numpy()
    candidates = top_k(similarity, CANDIDATES)
    scores = _pair_logits(network, gallery, own, np.maximum(candidates, 0))
    again = reordered(candidates, scores + np.take_along_axis(similarity, candidates, axis=1))
    found = {
        "accuracy": signs_right(logits, true).mean(axis=0),
        "r1_before": right_at(candidates, gallery.same, 1)[:, 0],
        "r1_after": right_at(again, gallery.same, 1)[:, 0],
    }
    figures: dict[str, float] = {}
    for name, right in found.items():
        figures |= named_share(name, right, own)
    return figures


def _pair_logits(
    network: Network, gallery: Gallery, rows: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """Of the last captions `rows` (R,) with their candidates (R, K), numbers of pictures: (R, K)
    float64."""
    device = gallery.captions.device
    texts = torch.from_numpy(rows).repeat_interleave(candidates.shape[1]).to(device)
    images = torch.from_numpy(candidates.ravel()).to(device)
    return _logits(network, gallery, texts, images).reshape(candidates.shape)


def _logits(network: Network, gallery: Gallery, texts: Tensor, images: Tensor) -> np.ndarray:
    """Of the last captions `texts` (P,) with the pictures `images` (P,): (P,) float64."""
    parts = [
        network.match(gallery.last.take(text), gallery.image.take(image)).logit.cpu().numpy()
        for text, image in zip(texts.split(BLOCK), images.split(BLOCK), strict=True)
    ]
    return np.concatenate(parts).astype(np.float64)


def _fused(network: Network, gallery: Gallery) -> Tensor:
    """Joint vectors (N, E) of pictures and first captions."""
    rows = torch.arange(len(gallery.image.vector), device=gallery.captions.device).split(BLOCK)
    parts = [network.fuse(gallery.first.take(r), gallery.image.take(r)).joint for r in rows]
    return torch.cat(parts)


def _mean(gallery: Gallery, text_weight: float) -> Tensor:
    mixed = (1 - text_weight) * gallery.image.vector + text_weight * gallery.first.vector
    return torch.nn.functional.normalize(mixed, dim=-1)


def _ranks(vectors: Tensor, queries: Tensor, owner: np.ndarray) -> np.ndarray:
    """The rank of each query's own among N vectors: (Q,) int64, see `ranks_of`."""
    return ranks_of((queries @ vectors.T).cpu().numpy(), owner)
