"""Fusion and decoding of plain tensors: forms without parameters by name, or a trained model.

    A(q, c) = softmax(q c^T / sqrt(d)) c       attention with the inputs themselves as keys and
                                               values (Vaswani et al., 2017, eq. 1), head by head

What is named here holds no weights. A form that has parameters is passed as a trained model: it is
never made with random ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from chiasm.pipeline.model.attention import multi_head_attention
from chiasm.pipeline.model.checkpoint import load_model
from chiasm.pipeline.model.decoder import Decoder
from chiasm.pipeline.model.fusion import Modality
from chiasm.pipeline.model.joint import JointNetwork


def multimodal_fusion(
    text_embedding: Tensor,
    image_embedding: Tensor,
    fusion: str | Path | JointNetwork = "concat",
    *,
    text_mask: Tensor | None = None,
    num_heads: int = 1,
) -> Tensor:
    """A text and a picture, or B of each -> what both are together.

    text_embedding, image_embedding: vectors (B, D), or tokens (B, T, D) and (B, N, D). text_mask
    (B, T) bool, True where there is a token, for a trained model and for `attention`.

    fusion: a form without parameters,
        concat     [t; i]: vectors (B, 2 D), tokens (B, T + N, D)
        add        t + i, of equal shapes: (B, D) or (B, T, D)
        mean       (t + i) / 2, likewise
        attention  [t + A(t, i); i + A(i, t)], of tokens, with `num_heads` heads: (B, T + N, D)
    or a trained model, a `JointNetwork` or the folder of one: tokens of its towers (B, T, D_0) and
    (B, N, D_1) -> joint vectors (B, E) float32, unit rows.

    ValueError for shapes that do not fit, and for the name of a form that has parameters;
    EncoderError for a folder that holds no model.
    """
    if not isinstance(fusion, str) or (fusion not in FORMS and _is_folder(fusion)):
        model = _loaded(fusion)
        if model.fusion is None:
            raise ValueError("fusion: expected a model that has one, found two towers alone")
        text = _text_modality(model, text_embedding, text_mask)
        return model.fuse(text, _image_modality(model, image_embedding)).joint
    if fusion not in FORMS:
        raise ValueError(_not_a_form("fusion", fusion, FORMS))
    return FORMS[fusion](text_embedding, image_embedding, text_mask, num_heads)


def joint_decoder(
    input_sequence: Tensor,
    text_encoder_output: Tensor,
    image_encoder_output: Tensor,
    decoder: str | Path | JointNetwork = "attention",
    *,
    text_mask: Tensor | None = None,
    num_heads: int = 1,
) -> Tensor:
    """A target so far, a text and a picture -> what is read of each target token.

    text_encoder_output (B, S, D_0), image_encoder_output (B, N, D_1), text_mask (B, S) bool, True
    where there is a token.

    decoder: `attention`, a form without parameters: input_sequence (B, T, D), D = D_0 = D_1,
        y = x + A_causal(x, x),   z = y + A(y, text),   z + A(z, image)      -> (B, T, D),
    with `num_heads` heads, a token attending to itself and those before it; or a trained model, a
    `JointNetwork` or the folder of one: input_sequence int64 (B, T), ids of its decoder, the first
    that of a task (`model.decoder.ids.prefix`) -> logits (B, T, V) of the next text token.

    ValueError for shapes that do not fit, for another name, and for a model without a decoder;
    EncoderError for a folder that holds no model.
    """
    if decoder == "attention":
        mask = None if text_mask is None else text_mask[:, None, None]
        x, length = input_sequence, input_sequence.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        x = x + multi_head_attention(x, x, x, num_heads, causal)
        x = x + _read(x, text_encoder_output, num_heads, mask)
        return x + _read(x, image_encoder_output, num_heads, None)
    if isinstance(decoder, str) and not _is_folder(decoder):
        raise ValueError(_not_a_form("decoder", decoder, ("attention",)))
    made = _decoder_of(_loaded(decoder))
    text = _present(text_encoder_output, text_mask)
    state = made.start(text, _present(image_encoder_output, None))
    return made.logits(made(input_sequence, state)[0], "text")


def _read(x: Tensor, context: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    if context.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"context of width {context.shape[-1]}: expected that of the input, {x.shape[-1]}"
        )
    return multi_head_attention(x, context, context, num_heads, mask)


def _concat(text: Tensor, image: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    _require_same_rank(text, image)
    return torch.cat([text, image], dim=1)


def _add(text: Tensor, image: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    if text.shape != image.shape:
        raise ValueError(
            f"text {tuple(text.shape)} and image {tuple(image.shape)}: expected equal shapes"
        )
    return text + image


def _mean(text: Tensor, image: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    return _add(text, image, mask, num_heads) / 2


def _attention(text: Tensor, image: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    _require_same_rank(text, image)
    if text.ndim != 3:
        raise ValueError(f"fusion attention: expected tokens (B, T, D), found {tuple(text.shape)}")
    of_text = text + _read(text, image, num_heads, None)
    masked = None if mask is None else mask[:, None, None]
    return torch.cat([of_text, image + _read(image, text, num_heads, masked)], dim=1)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor | None, int], Tensor]] = {
    "concat": _concat,
    "add": _add,
    "mean": _mean,
    "attention": _attention,
}


def _require_same_rank(text: Tensor, image: Tensor) -> None:
    fits = text.ndim == image.ndim and text.ndim in (2, 3) and len(text) == len(image)
    if not fits or (text.ndim == 3 and text.shape[-1] != image.shape[-1]):
        raise ValueError(
            f"text {tuple(text.shape)} and image {tuple(image.shape)}: expected vectors of both, "
            "(B, D), or tokens of one width, (B, T, D) and (B, N, D)"
        )


def _not_a_form(what: str, name: str, forms: object) -> str:
    known = ", ".join(forms) if isinstance(forms, (dict, tuple)) else ""
    return (
        f"{what} {name!r}: expected {known} (forms without parameters), a trained model or the "
        "folder of one"
    )


def _is_folder(name: str | Path) -> bool:
    return Path(name).is_dir()


def _loaded(model: str | Path | JointNetwork) -> JointNetwork:
    return model if isinstance(model, JointNetwork) else load_model(Path(model))[0]


def _decoder_of(model: JointNetwork) -> Decoder:
    if model.decoder is None:
        raise ValueError("decoder: expected a model that has one, found a model without")
    return model.decoder


def _present(tokens: Tensor, mask: Tensor | None) -> Modality:
    """Tokens as a modality of which the vector is not read."""
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return Modality(tokens, mask, tokens.new_zeros(len(tokens), 0))


def _text_modality(model: JointNetwork, tokens: Tensor, mask: Tensor | None) -> Modality:
    given = _present(tokens, mask)
    pooled = model.text.pool(tokens, given.mask[:, None, None])
    vector = functional.normalize(model.text_projection(pooled).float(), dim=-1)
    return Modality(tokens, given.mask, vector)


def _image_modality(model: JointNetwork, tokens: Tensor) -> Modality:
    pooled = model.image.pool(tokens)
    vector = functional.normalize(model.image_projection(pooled).float(), dim=-1)
    return Modality(tokens, _present(tokens, None).mask, vector)
