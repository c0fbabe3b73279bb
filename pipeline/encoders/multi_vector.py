"""`st:ID_OR_DIR` of a MultiVectorEncoder, such as ColPali, ColQwen2 or ColModernVBERT: a vector for
each token of a picture or a text, compared by MaxSim (late interaction; Khattab and Zaharia,
"ColBERT", 2020; Faysse et al., "ColPali", 2024).

The tokens are the model's own, stored as they come; `vectors` is one vector an item made from them
(muvera.py). There is no joint vector: a query of words and picture has the tokens of both, which
MaxSim adds up. No code of a model's own is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from chiasm.pipeline.encoders.base import BaseEncoder, require_modality
from chiasm.pipeline.encoders.muvera import Muvera
from chiasm.pipeline.encoders.protocols import Array, Encoded, Input, Ragged
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import ModelFolder, capture_warnings, find_model
from chiasm.pipeline.pretrained.sentence_folders import MULTI_VECTOR, kind_of
from chiasm.pipeline.pretrained.sentence_models import (
    MAX_PIXELS,
    WEIGHTS,
    downscaled,
    load_network,
    replace_surrogates,
)
from chiasm.pipeline.pretrained.sentence_tasks import DOCUMENT, QUERY, TextLengths, prompt_of
from chiasm.pipeline.records import IMAGE, TEXT

# Width of the single vectors, and so of what an index fits to the tokens: with 128 numbers of its
# own fit, the best 100 of 10,000 pictures hold 0.99 of MaxSim's best 10; twice as many for harder
# data cost half a kilobyte a row, where tokens cost 9 to 260.
DIMS = 256


def is_multi_vector(model: str) -> bool:
    """Whether a folder or a hub id holds a model that gives a vector for each token; raises
    EncoderError where it holds none."""
    return kind_of(find_model("st", model, WEIGHTS, nested=True).path) == MULTI_VECTOR


def load(model: str, settings: EncoderSettings) -> MultiVectorModel:
    """The encoder of a folder or a hub id; raises EncoderError or UsageError, in one line."""
    folder, network, precision, device = load_network(MultiVectorEncoder, model, settings)
    if not network.supports("text"):
        raise EncoderError(
            folder.title,
            expected="a MultiVectorEncoder for texts, and perhaps pictures",
            found="one without texts",
            do="take one that reads the queries too",
        )
    if settings.joint_weights is not None:
        raise UsageError(
            "encoder.joint_weights",
            expected="an encoder with joint vectors",
            found=f"{folder.what}, which has a vector for each token",
            do="leave it out",
        )
    return MultiVectorModel(folder, network.eval(), settings, precision, device)


class MultiVectorModel(BaseEncoder):
    """One MultiVectorEncoder; see the protocol `chiasm.pipeline.encoders.Encoder`. token_dims: the
    width of a token's vector, by modality."""

    def __init__(
        self,
        folder: ModelFolder,
        network: MultiVectorEncoder,
        settings: EncoderSettings,
        precision: str,
        device: torch.device,
    ) -> None:
        self.name, self.precision, self.device = folder.name, precision, str(device)
        self._network = network
        self._query = _prompt(network, settings.query_prompt)
        self._document = _prompt(network, settings.document_prompt)
        factor = settings.pool_tokens or 1
        self._pooling = HierarchicalTokenPooling(factor) if factor > 1 else None
        # Pictures first, as in the protocol's order of columns.
        kinds = [kind for kind in (IMAGE, TEXT) if network.supports(kind)]
        self.modalities = {kind: Input() for kind in kinds}
        with capture_warnings():  # a ColPali says once that it reads texts as queries
            probe = self._tokens(network.encode_document, [{TEXT: "a"}], self._document)
        width = probe.values.shape[1]
        self._lengths = {
            task: TextLengths(network, task, prompt_of(network, task, given))
            for task, given in (
                (QUERY, settings.query_prompt),
                (DOCUMENT, settings.document_prompt),
            )
        }
        self._single = Muvera(width, DIMS)
        self.dims = dict.fromkeys(kinds, DIMS)
        self.token_dims = dict.fromkeys(kinds, width)
        self.preprocessing = {
            "image": {"largest": MAX_PIXELS, "then": "the model's own"},
            "query": self._query or "the model's own",
            "document": self._document or "the model's own",
            "tokens": {"width": width, "pooled": factor},
            "single": self._single.rule,
        }
        self.fingerprint = folder.fingerprint(self.preprocessing)

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> the same, downscaled to at most MAX_PIXELS pixels. A text
        stays as it is."""
        require_modality(self, modality)
        return raw if modality == TEXT else downscaled(raw)

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """B outputs of `preprocess` as documents -> B rows, their tokens pooled."""
        tokens = self._encode(modality, items, query=False)
        cut = self._cut(DOCUMENT, modality, items)
        return Encoded(self._single.documents(tokens), tokens, tokens_cut=cut)

    def encode_queries(self, modality: str, items: Sequence[Any]) -> Encoded:
        """The same as queries, whose tokens are never pooled."""
        tokens = self._encode(modality, items, query=True)
        cut = self._cut(QUERY, modality, items)
        return Encoded(self._single.queries(tokens), tokens, tokens_cut=cut)

    def _cut(self, task: str, modality: str, items: Sequence[Any]) -> Array | None:
        """How many tokens of each text are cut off, (B,) int64."""
        if modality != TEXT:
            return None
        return self._lengths[task].cut([replace_surrogates(item) for item in items])

    def _encode(self, modality: str, items: Sequence[Any], *, query: bool) -> Ragged:
        require_modality(self, modality)
        if not len(items):
            return Ragged(np.zeros((0, self._single.width), np.float32), np.zeros(0, np.int64))
        # Named by modality, never bare: a text that reads like a picture's URL would be fetched.
        inputs = [{modality: _model_input(modality, item)} for item in items]
        if query:
            return self._tokens(self._network.encode_query, inputs, self._query)
        prompt = {**self._document, "token_pooling": self._pooling}
        return self._tokens(self._network.encode_document, inputs, prompt)

    def _tokens(
        self, encode: Callable[..., Any], inputs: list[dict[str, Any]], options: dict[str, Any]
    ) -> Ragged:
        more = {"show_progress_bar": False, "convert_to_numpy": True, **options}
        found = encode(inputs, batch_size=len(inputs), **more)
        values = np.concatenate([np.asarray(one, np.float32) for one in found])
        return Ragged(values, np.array([len(one) for one in found], np.int64))


def _model_input(modality: str, item: Any) -> Any:
    return Image.fromarray(item) if modality == IMAGE else replace_surrogates(item)


def _prompt(network: MultiVectorEncoder, given: str | None) -> dict[str, Any]:
    """The arguments of `encode_query` and `encode_document` for a prompt of the model's by its
    name, or a text; {} for the model's own choice."""
    if given is None:
        return {}
    return {"prompt_name": given} if given in network.prompts else {"prompt": given}


def refuse_pooling(model: str, settings: EncoderSettings) -> None:
    """UsageError for token pooling of a model with one vector an item."""
    if settings.pool_tokens is not None:
        raise UsageError(
            "encoder.pool_tokens",
            expected="an encoder with a vector for each token, a MultiVectorEncoder",
            found=f"st:{model}",
            do="leave it out",
        )
