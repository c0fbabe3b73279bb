"""The joint decoder: tokens so far, a text and a picture -> the next token.

Each block attends to the tokens so far (causal), to the tokens of the source text, and to those of
the picture (Vaswani et al., Attention Is All You Need, 2017, with two encoders in place of one).
The words of the source have looked at the picture before (the image-grounded text encoder of Li et
al., BLIP, 2022): in "is the boat left of the moon" each noun then knows where its thing is, and one
token that reads both can compare. With `DecoderConfig.reads_fused` each word comes with what the
fusion made of it beside the picture (`JointNetwork.source`), where relations were compared already.
What a row lacks, a text or a picture, it attends nowhere in, which adds nothing but a bias.

Keys and values of a block's contexts are made once: for all tokens that are generated, and for all
questions about one picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.attention import Attention, KeysValues
from chiasm.pipeline.model.blocks import CrossBlock
from chiasm.pipeline.model.config import DecoderConfig, ImageTokensConfig
from chiasm.pipeline.model.fusion import Modality
from chiasm.pipeline.model.generate import Step
from chiasm.pipeline.model.tasks import Head, TargetIds

# Deviation of the rows and of the columns that are added to projected patches, which have 1.1.
# Smaller, and a decoder learns late where a patch lies.
GRID_SIZE = 0.5
POSITION_SIZE = 0.02  # deviation of the positions of target tokens, that of their embeddings


@dataclass(frozen=True)
class BlockState:
    """What one block attends to: keys and values (B, H, S, d) of the source text, (B, H, N, d) of
    the picture, and (B, H, L, d) of the tokens so far, None before the first."""

    text: KeysValues
    image: KeysValues
    past: KeysValues | None = None

    @property
    def length(self) -> int:
        """L, tokens so far."""
        return 0 if self.past is None else self.past[0].shape[2]

    def take(self, rows: Tensor) -> BlockState:
        """Rows (B',) int64, in their order."""
        past = None if self.past is None else _take(self.past, rows)
        return BlockState(_take(self.text, rows), _take(self.image, rows), past)

    def reorder(self, rows: Tensor) -> BlockState:
        """As that of `DecoderState`."""
        past = None if self.past is None else _take(self.past, rows)
        return BlockState(self.text, self.image, past)


@dataclass(frozen=True)
class DecoderState:
    """What a decoder remembers of B rows: a `BlockState` a block; masks (B, 1, 1, S) and
    (B, 1, 1, N), True where there is a token of the text and of the picture; grounding: keys and
    values (B, H, N, d) of the picture, that words look at, one pair a block that grounds them."""

    blocks: tuple[BlockState, ...]
    text_mask: Tensor
    image_mask: Tensor
    grounding: tuple[KeysValues, ...]

    @property
    def length(self) -> int:
        """L, tokens so far."""
        return self.blocks[0].length

    def take(self, rows: Tensor) -> DecoderState:
        """Rows (B',) int64, in their order, each as often as it is named."""
        blocks = tuple(block.take(rows) for block in self.blocks)
        grounding = tuple(_take(pair, rows) for pair in self.grounding)
        return DecoderState(blocks, self.text_mask[rows], self.image_mask[rows], grounding)

    def reorder(self, rows: Tensor) -> DecoderState:
        """As many rows (B,) int64, where row i and row `rows[i]` have one text and one picture:
        their keys and values stay, those of the tokens so far are taken."""
        blocks = tuple(block.reorder(rows) for block in self.blocks)
        return replace(self, blocks=blocks)


class DecoderBlock(CrossBlock):
    """Causal self attention, attention to the source text (`cross`), attention to the picture, and
    an MLP, around one residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.image_norm = nn.LayerNorm(width)
        self.image_context_norm = nn.LayerNorm(width)
        self.image_cross = Attention(width, heads)

    def contexts(self, text: Tensor, image: Tensor) -> BlockState:
        """text (B, S, D), image (B', N, D) -> their keys and values."""
        return BlockState(
            self.cross.keys_values(self.context_norm(text)),
            self.image_cross.keys_values(self.image_context_norm(image)),
        )

    def decode(
        self, x: Tensor, mask: Tensor, state: BlockState, text_mask: Tensor, image_mask: Tensor
    ) -> tuple[Tensor, BlockState]:
        """x (B, T, D), the tokens after the L of the state; mask (T, L + T) bool; the other masks
        as in `DecoderState` -> (B, T, D) and the state after them."""
        normed = self.attention_norm(x)
        past = self.attention.keys_values(normed)
        if state.past is not None:
            joined = (torch.cat(pair, dim=2) for pair in zip(state.past, past, strict=True))
            past = (next(joined), next(joined))
        x = x + self.attention.attend(normed, past, mask)
        x = x + self.cross.attend(self.cross_norm(x), state.text, text_mask)
        x = x + self.image_cross.attend(self.image_norm(x), state.image, image_mask)
        return x + self.mlp(self.mlp_norm(x)), BlockState(state.text, state.image, past)


class Decoder(nn.Module):
    """Target ids, a text and a picture -> logits of the next id.

    widths: of the tokens of text and picture; text_ids: V of `TargetIds`; codes: of pictures, None
    for a decoder that draws none; patches: N.
    """

    def __init__(
        self,
        config: DecoderConfig,
        widths: tuple[int, int],
        text_ids: int,
        codes: ImageTokensConfig | None,
        patches: int,
    ) -> None:
        super().__init__()
        width, side = config.width, isqrt(patches)
        self.config, self.widths = config, widths
        self.ids = TargetIds(text_ids, config.prefixes, codes.vocabulary if codes else 0)
        self.embedding = nn.Embedding(len(self.ids), width)
        self.position = nn.Parameter(torch.randn(1, config.context, width) * POSITION_SIZE)
        self.input_projections = nn.ModuleList(nn.Linear(item, width) for item in widths)
        self.patch_position = nn.Parameter(_grid(side, width, GRID_SIZE))
        # Of the code that is written next: which row and column of the picture it is.
        self.code_position: nn.Parameter | None = None
        if codes is not None:
            self.code_position = nn.Parameter(_grid(codes.columns, width, POSITION_SIZE))
        self.grounding = nn.ModuleList(
            CrossBlock(width, config.heads) for _ in range(config.grounding)
        )
        self.blocks = nn.ModuleList(DecoderBlock(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)

    def reset_parameters(self) -> None:
        """Initial weights: matrices as in Glorot and Bengio (2010), embeddings of deviation 0.02,
        which the logits share."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def start(self, text: Modality | None, image: Modality | None) -> DecoderState:
        """Tokens of B texts and of B pictures, None where no row has them -> the state before the
        first target token. ValueError where both are None.

        Of one picture's many questions: `start` with each picture once and no text, `take` its
        rows, and `with_text`.
        """
        some = text if image is None else image
        if some is None:
            raise ValueError("expected a text, a picture or both, found neither")
        patches, image_mask = self._patches(image, some)
        grounding = tuple(block.keys_values(patches) for block in self._grounding_blocks())
        words, text_mask = self._words(text, some, grounding, image_mask)
        blocks = tuple(block.contexts(words, patches) for block in self._blocks())
        return DecoderState(blocks, text_mask, image_mask, grounding)

    def with_text(self, state: DecoderState, text: Modality) -> DecoderState:
        """The same rows and pictures with other texts, (B, S, D_0), before the first token."""
        words, mask = self._words(text, text, state.grounding, state.image_mask)
        blocks = tuple(
            BlockState(block.cross.keys_values(block.context_norm(words)), old.image)
            for block, old in zip(self._blocks(), state.blocks, strict=True)
        )
        return replace(state, blocks=blocks, text_mask=mask)

    def forward(
        self, ids: Tensor, state: DecoderState, head: Head = "text"
    ) -> tuple[Tensor, DecoderState]:
        """ids int64 (B, T), the T target tokens after the L of the state, of a task with this head
        -> what is read of each (B, T, D), and the state after them. ValueError past the context of
        the config, or the codes of a picture."""
        length, more = state.length, ids.shape[1]
        places = self.position if head == "text" else self._code_places()
        if length + more > places.shape[1]:
            raise ValueError(
                f"target of {length + more} tokens: expected at most {places.shape[1]}"
            )
        x = self.embedding(ids) + places[:, length : length + more]
        mask = torch.ones(more, length + more, dtype=torch.bool, device=ids.device).tril(length)
        states = []
        for block, old in zip(self._blocks(), state.blocks, strict=True):
            x, new = block.decode(x, mask, old, state.text_mask, state.image_mask)
            states.append(new)
        return self.norm(x), replace(state, blocks=tuple(states))

    def logits(self, hidden: Tensor, head: Head) -> Tensor:
        """hidden (..., D) -> logits (..., V) of text ids or (..., C) of codes; the weights are the
        embedding's (Press and Wolf, Using the Output Embedding, 2017)."""
        first, count = self.ids.range(head)
        return functional.linear(hidden, self.embedding.weight[first : first + count])

    def step(self, head: Head) -> Step[DecoderState]:
        """What `generate` asks of a model, for targets of a head: its ids, from the first token on,
        are columns of the head's logits."""
        first, _count = self.ids.range(head)

        def step(ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
            ids = ids + first if state.length else ids  # the first is the prefix of a task
            hidden, state = self(ids[:, None], state, head)
            return self.logits(hidden[:, 0], head), state

        return step

    def _blocks(self) -> list[DecoderBlock]:
        return [block for block in self.blocks if isinstance(block, DecoderBlock)]

    def _code_places(self) -> Tensor:
        """(1, N, D): where in the sequence and where in the picture each of N codes is."""
        if self.code_position is None:
            raise ValueError("a decoder of texts alone: expected one with codes of pictures")
        return self.position[:, : self.code_position.shape[1]] + self.code_position

    def _grounding_blocks(self) -> list[CrossBlock]:
        return [block for block in self.grounding if isinstance(block, CrossBlock)]

    def _words(
        self,
        text: Modality | None,
        rows_of: Modality,
        grounding: tuple[KeysValues, ...],
        image_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Words (B, S, D) that have looked at the picture, and their mask (B, 1, 1, S); B of
        `rows_of`, S = 1 where there is no text. grounding, image_mask: as in `DecoderState`."""
        if text is None:
            return self._nothing(rows_of)
        words, mask = self.input_projections[0](text.tokens), text.mask[:, None, None]
        for block, picture in zip(self._grounding_blocks(), grounding, strict=True):
            words = block.attend(words, mask, picture, image_mask)
        return words, mask

    def _patches(self, image: Modality | None, rows_of: Modality) -> tuple[Tensor, Tensor]:
        """Patches (B, N, D) and their mask (B, 1, 1, N); B of `rows_of`, N = 1 where there is no
        picture."""
        if image is None:
            return self._nothing(rows_of)
        patches = self.input_projections[1](image.tokens) + self.patch_position
        return patches, image.mask[:, None, None]

    def _nothing(self, rows_of: Modality) -> tuple[Tensor, Tensor]:
        """One token (B, 1, D) that no row attends to, and its mask (B, 1, 1, 1): attention takes no
        empty sequence."""
        rows = len(rows_of.tokens)
        nothing = self.position.new_zeros(rows, 1, self.config.width)
        return nothing, torch.zeros(rows, 1, 1, 1, dtype=torch.bool, device=nothing.device)


def _grid(side: int, width: int, size: float) -> Tensor:
    """(1, side ** 2, D) in row order: a row's vector plus a column's, of deviation `size`."""
    rows, columns = torch.randn(2, side, width) * size
    return (rows[:, None] + columns[None]).reshape(1, side * side, width)


def _take(pair: KeysValues, rows: Tensor) -> KeysValues:
    return pair[0][rows], pair[1][rows]
