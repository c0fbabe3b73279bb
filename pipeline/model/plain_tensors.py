"""Fusion and decoding of plain tensors: forms without parameters by name, or a trained model.

    A(q, c) = softmax(q c^T / sqrt(d)) c       attention with the inputs themselves as keys and
                                               values (Vaswani et al., 2017, eq. 1), head by head

What is named here holds no weights. A form that has parameters is passed as a trained model: it is
never made with random ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.attention import multi_head_attention
from chiasm.pipeline.model.checkpoint import format_of, load_model
from chiasm.pipeline.model.decoder import Decoder
from chiasm.pipeline.model.frozen_joint import (
    FROZEN_FORMAT,
    FrozenJointNetwork,
    load_frozen_joint,
)
from chiasm.pipeline.model.fusion import Modality
from chiasm.pipeline.model.joint import JointNetwork

UNIT_TOLERANCE = 1e-2  # of the norms of unit vectors: rounded to bfloat16 they are off by less


class HasNetwork(Protocol):
    """A `JointModel`, whose library takes seconds to load and is not loaded for this."""

    network: JointNetwork


Network = JointNetwork | FrozenJointNetwork


def multimodal_fusion(
    text_embedding: Tensor,
    image_embedding: Tensor,
    fusion: str | Path | Network | HasNetwork = "concat",
    *,
    text_mask: Tensor | None = None,
    num_heads: int = 1,
) -> Tensor:
    """A text and a picture, or B of each -> what both are together.

    text_embedding, image_embedding: vectors (B, D), of one width but for `concat`, or tokens
    (B, T, D) and (B, N, D). text_mask (B, T) bool, True where there is a token, for `attention` and
    a `JointNetwork`; a text without any token counts as no text. num_heads: for `attention`.

    fusion: a form without parameters,
        concat     [t; i]: vectors (B, D_0 + D_1), tokens (B, T + N, D)
        add        t + i, of equal shapes: (B, D) or (B, T, D)
        mean       (t + i) / 2, likewise
        attention  [t + A(t, i); i + A(i, t)], of tokens, with `num_heads` heads: (B, T + N, D)
    or a trained model, whose weights have the dtype that both are cast to -> joint vectors (B, E)
    float32, unit rows:
        a `JointNetwork`, a `JointModel` or its folder: tokens (B, T, D_0), (B, N, D_1) of towers
        a `FrozenJointNetwork` or its folder: unit vectors (B, E) of the encoder below it

    ValueError for shapes that do not fit, for the name of a form that has parameters, for a
    `text_mask` or `num_heads` that would not be read, and for vectors that are not of unit length
    where these are asked for; EncoderError for a folder that holds no model.
    """
    given = text_embedding, image_embedding
    _require_tensors(*given)
    if not isinstance(fusion, str) or (fusion not in FORMS and _is_folder(fusion)):
        model = _loaded(fusion)
        if isinstance(model, FrozenJointNetwork):
            _require_unread("fusion of vectors", text_mask, num_heads)
            _require_vectors(*given, model.config.dim)
            return model.fuse(*(model.image_modality(_cast(v, model)) for v in given)).joint
        if model.fusion is None:
            raise ValueError("fusion: expected a model that has one, found two towers alone")
        _require_unread("a trained fusion", None, num_heads)
        widths = model.config.text.width, model.config.image.width
        _require_encoded(*given, text_mask, widths, model.config.image.patches)
        text = _text_modality(model, text_embedding, text_mask)
        return model.fuse(text, _image_modality(model, image_embedding)).joint
    if fusion not in FORMS:
        raise ValueError(_not_a_form("fusion", fusion, FORMS))
    if fusion == "attention":
        _require_mask(text_mask, text_embedding)
    else:
        _require_unread(f"fusion {fusion}", text_mask, num_heads)
    return FORMS[fusion](*given, text_mask, num_heads)


def joint_decoder(
    input_sequence: Tensor,
    text_encoder_output: Tensor,
    image_encoder_output: Tensor,
    decoder: str | Path | Decoder | JointNetwork | HasNetwork = "attention",
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
    `Decoder`, a `JointNetwork` or `JointModel` that has one, or the folder of one: input_sequence
    int64 (B, T), ids of the decoder, the first that of a task (`decoder.ids.prefix`) -> logits
    (B, T, V) of the next text token, in the dtype of its weights, which tokens are cast to. Of a
    `Decoder` that reads what is fused (`DecoderConfig.reads_fused`), without its model, the text is
    what `JointNetwork.source` makes of text and picture.

    ValueError for shapes that do not fit, for another name, for a model without a decoder, and for
    `num_heads` that would not be read; EncoderError for a folder that holds no model.
    """
    given = text_encoder_output, image_encoder_output, text_mask
    _require_tensors(input_sequence, *given[:2])
    if decoder == "attention":
        _require_shape("input_sequence", input_sequence, (None, None, None), "(B, T, D)")
        rows, _, width = input_sequence.shape
        for name, context in (
            ("text_encoder_output", text_encoder_output),
            ("image_encoder_output", image_encoder_output),
        ):
            _require_shape(name, context, (rows, None, width), "(B, S, D), B and D of the input")
        _require_mask(text_mask, text_encoder_output)
        mask = None if text_mask is None else text_mask[:, None, None]
        x, length = input_sequence, input_sequence.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        x = x + multi_head_attention(x, x, x, num_heads, causal)
        x = x + _read(x, text_encoder_output, num_heads, mask)
        return x + _read(x, image_encoder_output, num_heads, None)
    if isinstance(decoder, str) and not _is_folder(decoder):
        raise ValueError(_not_a_form("decoder", decoder, ("attention",)))
    _require_unread("a trained decoder", None, num_heads)
    if isinstance(decoder, Decoder):
        return _logits_of_decoder(input_sequence, *given, decoder)
    return _logits_of_network(input_sequence, *given, _loaded(decoder))


def _logits_of_decoder(
    ids: Tensor, text: Tensor, image: Tensor, mask: Tensor | None, made: Decoder
) -> Tensor:
    """Of a decoder, which is given what it reads."""
    _require_encoded(text, image, mask, made.widths, made.patch_position.shape[1])
    _require_ids(ids, len(text), len(made.ids))
    source, patches = _present(_cast(text, made), mask), _present(_cast(image, made), None)
    return made.logits(made(ids, made.start(source, patches))[0], "text")


def _logits_of_network(
    ids: Tensor, text: Tensor, image: Tensor, mask: Tensor | None, model: Network
) -> Tensor:
    """Of a model that has a decoder, which is given the tokens of its towers."""
    if isinstance(model, FrozenJointNetwork) or model.decoder is None:
        raise ValueError("decoder: expected a model that has one, found a model without")
    widths = (model.config.text.width, model.config.image.width)
    _require_encoded(text, image, mask, widths, model.config.image.patches)
    if not model.decoder.config.reads_fused:
        return _logits_of_decoder(ids, text, image, mask, model.decoder)
    of_text, of_image = _text_modality(model, text, mask), _image_modality(model, image)
    source = model.source(of_text, of_image).tokens
    return _logits_of_decoder(ids, source, image, mask, model.decoder)


def _require_tensors(*given: object) -> None:
    """ValueError with the types where one is no tensor."""
    if not all(isinstance(value, Tensor) for value in given):
        types = ", ".join(type(value).__name__ for value in given)
        raise ValueError(f"expected tensors, found {types}")


Shape = tuple[int | None, ...]  # None: any size


def _require_shape(name: str, tensor: Tensor, shape: Shape, form: str) -> None:
    """ValueError for another shape than `shape`; form: what it is called."""
    found = tuple(tensor.shape)
    fits = len(found) == len(shape) and all(
        size and wanted in (None, size) for size, wanted in zip(found, shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("1 or more" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected {form}, here ({sizes}), found {found}")


def _require_mask(mask: Tensor | None, text: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise ValueError(f"text_mask: expected a tensor, found {type(mask).__name__}")
    _require_shape("text_mask", mask, tuple(text.shape[:2]), "(B, T) of the text")
    if mask.dtype != torch.bool:
        raise ValueError(f"text_mask: expected bool, found {mask.dtype}")


def _require_unread(by: str, text_mask: Tensor | None, num_heads: int) -> None:
    """ValueError for what the form `by` does not read."""
    if text_mask is not None:
        raise ValueError(f"text_mask: expected none, {by} reads no mask, found one")
    if num_heads != 1:
        raise ValueError(f"num_heads: expected none, {by} cuts no heads, found {num_heads}")


def _require_encoded(
    text: Tensor, image: Tensor, text_mask: Tensor | None, widths: tuple[int, int], patches: int
) -> None:
    """ValueError for tokens that are not of the towers of a model, of text and picture."""
    _require_shape("text", text, (None, None, widths[0]), "tokens (B, T, D) of the model")
    shape = (len(text), patches, widths[1])
    _require_shape("image", image, shape, "tokens (B, N, D) of the model, B of the text")
    _require_mask(text_mask, text)


def _require_vectors(text: Tensor, image: Tensor, dim: int) -> None:
    """ValueError for what is not B unit vectors of each."""
    _require_shape("text", text, (None, dim), "vectors (B, E) of the encoder")
    _require_shape("image", image, (len(text), dim), "vectors (B, E) of the encoder, B of the text")
    for name, vectors in (("text", text), ("image", image)):
        norms = vectors.float().norm(dim=1)
        if not ((norms - 1).abs() <= UNIT_TOLERANCE).all():
            found = f"{float(norms.min()):.3g} to {float(norms.max()):.3g}"
            raise ValueError(f"{name}: expected unit vectors, found norms of {found}")


def _require_ids(ids: Tensor, rows: int, count: int) -> None:
    _require_shape("input_sequence", ids, (rows, None), "ids (B, T), B of the text")
    if ids.dtype != torch.int64 or int(ids.min()) < 0 or int(ids.max()) >= count:
        found = ids.dtype if ids.dtype != torch.int64 else f"{int(ids.min())} to {int(ids.max())}"
        raise ValueError(f"input_sequence: expected int64 ids below {count}, found {found}")


def _read(x: Tensor, context: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    return multi_head_attention(x, context, context, num_heads, mask)


def _concat(text: Tensor, image: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    _require_same_rank(text, image)
    return torch.cat([text, image], dim=1)


def _add(text: Tensor, image: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    _require_same_rank(text, image)
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
            "(B, D_0) and (B, D_1), or tokens of one width, (B, T, D) and (B, N, D)"
        )


def _not_a_form(what: str, name: str, forms: object) -> str:
    known = ", ".join(forms) if isinstance(forms, (dict, tuple)) else ""
    return (
        f"{what} {name!r}: expected {known} (forms without parameters), a trained model or the "
        "folder of one"
    )


def _is_folder(name: str | Path) -> bool:
    return os.path.isdir(name)  # False for "", and for what is too long a name


def _loaded(model: str | Path | Network | HasNetwork) -> Network:
    network = getattr(model, "network", model)
    if isinstance(network, Network):
        return network
    if not isinstance(model, (str, Path)):
        expected = "a JointModel, a JointNetwork, a FrozenJointNetwork or the folder of one"
        raise ValueError(f"model of type {type(model).__name__}: expected {expected}")
    if format_of(Path(model)) == FROZEN_FORMAT:
        return load_frozen_joint(Path(model))
    return load_model(Path(model))[0]


def _cast(tensor: Tensor, model: nn.Module) -> Tensor:
    """In the dtype of the model's weights."""
    return tensor.to(next(model.parameters()).dtype)


def _present(tokens: Tensor, mask: Tensor | None) -> Modality:
    """Tokens as a modality of which the vector is not read; what is masked may be anything."""
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    tokens = tokens.masked_fill(~mask[..., None], 0)
    return Modality(tokens, mask, tokens.new_zeros(len(tokens), 0))


def _text_modality(model: JointNetwork, tokens: Tensor, mask: Tensor | None) -> Modality:
    given = _present(_cast(tokens, model), mask)
    pooled = model.text.pool(given.tokens, given.mask[:, None, None])
    vector = functional.normalize(model.text_projection(pooled).float(), dim=-1)
    return Modality(given.tokens, given.mask, vector)


def _image_modality(model: JointNetwork, tokens: Tensor) -> Modality:
    tokens = _cast(tokens, model)
    pooled = model.image.pool(tokens)
    vector = functional.normalize(model.image_projection(pooled).float(), dim=-1)
    return Modality(tokens, _present(tokens, None).mask, vector)
