"""`st:ID_OR_DIR`: any SentenceTransformer that takes pictures, such as Qwen3-VL-Embedding or CLIP.

The model's own modules preprocess, tokenise and pool, on the encoder's thread: what resize they do
is theirs to know, so decode threads hand over whole pictures, bounded in size. That costs memory
and a core where `hf:` costs neither; take `hf:` for CLIP and SigLIP. No code of a model's own is
run: what needs trust_remote_code is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from chiasm.pipeline.encoders.base import BaseEncoder, normalized_mean, require_modality, unit
from chiasm.pipeline.encoders.protocols import JOINT, Array, Encoded, Input
from chiasm.pipeline.encoders.sentence_sound import AUDIO, SentenceSound
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.pretrained import EncoderOptions, EncoderSettings
from chiasm.pipeline.pretrained.hub import ModelFolder
from chiasm.pipeline.pretrained.sentence_costs import picture_cost
from chiasm.pipeline.pretrained.sentence_models import (
    MAX_PIXELS,
    downscaled,
    load_network,
    replace_surrogates,
)
from chiasm.pipeline.pretrained.sentence_tasks import (
    DOCUMENT,
    QUERY,
    TextLengths,
    default_prompt,
    first_module,
    prompt_of,
    reads_task,
)
from chiasm.pipeline.records import IMAGE, SOUND, TEXT


def load(model: str, settings: EncoderSettings) -> SentenceTransformerEncoder:
    """The encoder of a folder or a hub id; raises EncoderError or UsageError, in one line."""
    folder, network, precision, device = load_network(SentenceTransformer, model, settings)
    lacking = [
        kind
        for kind in (IMAGE, TEXT)
        if not network.supports(kind) or first_module(network, DOCUMENT, kind) is None
    ]
    if lacking and not (network.supports(AUDIO) and TEXT not in lacking):
        raise EncoderError(
            folder.title,
            expected="a SentenceTransformer for pictures and texts",
            found="one without " + " or ".join(lacking),
            do="take one with both, such as st:Qwen/Qwen3-VL-Embedding-2B",
        )
    return SentenceTransformerEncoder(folder, network.eval(), precision, device, settings)


@dataclass(frozen=True)
class Inputs:
    """A batch's inputs as they went in: a model that fuses reads pictures and texts again."""

    items: list[Any]

    def take(self, rows: Array) -> Inputs:
        return Inputs([self.items[row] for row in rows])


class SentenceTransformerEncoder(BaseEncoder):
    """One SentenceTransformer; see the protocol `chiasm.pipeline.encoders.Encoder`.

    What is embedded goes through the model's own `encode_document`, queries through its own
    `encode_query`, with the prompts that the settings name, else the model's.

    earlier_fingerprints: that of the same model when rows were made by a plain `encode`, under the
    model's default prompt, where they would be others today."""

    def __init__(
        self,
        folder: ModelFolder,
        network: SentenceTransformer,
        precision: str,
        device: torch.device,
        settings: EncoderOptions,
    ) -> None:
        self.name = folder.name
        self.precision = precision
        self.device = str(device)
        self._network = network
        self._sound = SentenceSound.of(network, folder.title)
        self.modalities = {IMAGE: Input()} if network.supports(IMAGE) else {}
        if self._sound is not None:
            self.modalities[SOUND] = self._sound.input
        self.modalities[TEXT] = Input()
        together: Any = tuple(sorted(map(_library_name, self.modalities)))
        self._fuses = network.supports(together)
        self._prompts = {
            QUERY: prompt_of(network, QUERY, settings.query_prompt),
            DOCUMENT: prompt_of(network, DOCUMENT, settings.document_prompt),
        }
        self._describe(folder, settings)
        self._lengths = {
            task: TextLengths(network, task, prompt) for task, prompt in self._prompts.items()
        }
        if IMAGE in self.modalities:
            self._picture_cost = picture_cost(
                lambda picture: network.preprocess([{IMAGE: picture}], task=DOCUMENT),
                getattr(first_module(network, DOCUMENT, IMAGE), "config", None),
                next(network.parameters()).dtype,
            )
        dim = self._encode(DOCUMENT, [{TEXT: "a"}]).shape[1]
        self.dims = dict.fromkeys((*self.modalities, JOINT), dim)

    def _describe(self, folder: ModelFolder, settings: EncoderOptions) -> None:
        """Set `preprocessing`, the fingerprint and earlier ones. What the model itself says of its
        queries lies in its files, which have a part in the fingerprint; rows are made under the
        document prompt, which has one by its text."""
        network, (query, document) = self._network, (self._prompts[QUERY], self._prompts[DOCUMENT])
        shared = {
            "image": {"largest": MAX_PIXELS, "then": "the model's own"},
            "joint": "the model's own" if self._fuses else "normalised mean",
        }
        text = {"prompt": document}
        if reads_task(network):
            text["task"] = DOCUMENT
        self.preprocessing = {**shared, "text": {**text, "query_prompt": query}}
        if query != prompt_of(network, QUERY, None):
            text["query_prompt"] = query
        before = {"prompt": default_prompt(network)}
        self.fingerprint, earlier = folder.fingerprints(
            [{**shared, "text": text}, {**shared, "text": before}]
        )
        self.earlier_fingerprints = {}
        if earlier != self.fingerprint and not settings.given():
            words = "prompts" if before["prompt"] != document else "routes"
            self.earlier_fingerprints = {earlier: words}

    @property
    def joint_is_mean(self) -> bool:
        """See `BaseEncoder`."""
        return not self._fuses

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> the same, downscaled to at most MAX_PIXELS pixels. A sound
        float32 (T,) -> as much as the model takes. A text stays as it is."""
        require_modality(self, modality)
        if modality == SOUND and self._sound is not None:
            return self._sound.preprocess(raw)
        return raw if modality == TEXT else downscaled(raw)

    def cost(self, modality: str, item: Any) -> int:
        """Of a picture by its pixels. A text's tokens are few beside those of pictures."""
        if modality == IMAGE:
            return item.nbytes + self._picture_cost(item.shape[0] * item.shape[1])
        return super().cost(modality, item)

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """B outputs of `preprocess` -> B rows, by the model's own `encode_document`."""
        return self._rows(DOCUMENT, modality, items)

    def encode_queries(self, modality: str, items: Sequence[Any]) -> Encoded:
        """The same by its own `encode_query`; UsageError where that takes none of the modality."""
        if first_module(self._network, QUERY, _library_name(modality)) is None:
            raise UsageError(
                f"encoder {self.name}",
                expected=f"a route that takes {modality} as a query",
                found="none in this model",
                do="query with a picture" if modality == TEXT else "query with a text",
            )
        return self._rows(QUERY, modality, items)

    def encode_joint(self, parts: Mapping[str, Encoded]) -> Array:
        """B rows of several modalities -> (B, D) float32 unit rows: read together by a model that
        can (one more forward pass), the normalised mean elsewhere."""
        return self._joint(DOCUMENT, parts)

    def encode_joint_queries(self, parts: Mapping[str, Encoded]) -> Array:
        """The same for queries."""
        return self._joint(QUERY, parts)

    def _rows(self, task: str, modality: str, items: Sequence[Any]) -> Encoded:
        require_modality(self, modality)
        if not len(items):
            return Encoded(np.zeros((0, self.dims[modality]), np.float32))
        inputs = [self._model_input(modality, item) for item in items]
        cut = None
        if modality == TEXT:
            cut = self._lengths[task].cut([given[TEXT] for given in inputs])
        state = Inputs(list(items)) if self._fuses else None
        return Encoded(self._encode(task, inputs), tokens_cut=cut, state=state)

    def _joint(self, task: str, parts: Mapping[str, Encoded]) -> Array:
        states = {modality: part.state for modality, part in parts.items()}
        items = {name: state.items for name, state in states.items() if isinstance(state, Inputs)}
        if len(items) < len(parts):
            return normalized_mean([part.vectors for part in parts.values()])
        together: list[dict[str, Any]] = [{} for _ in range(len(next(iter(items.values()))))]
        for modality, some in items.items():
            for row, item in zip(together, some, strict=True):
                row.update(self._model_input(modality, item))
        return self._encode(task, together)

    def _encode(self, task: str, inputs: list[dict[str, Any]]) -> Array:
        # Inputs are named by modality, never bare: a bare text that reads like the URL or the path
        # of a picture would be fetched and shown to the model, and captions are anybody's.
        encode = self._network.encode_query if task == QUERY else self._network.encode_document
        rows = encode(
            inputs,
            prompt=self._prompts[task],
            batch_size=len(inputs),
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return unit(rows)

    def _model_input(self, modality: str, item: Any) -> dict[str, Any]:
        """An item under the library's name of its modality."""
        if modality == SOUND and self._sound is not None:
            return {AUDIO: self._sound.model_input(item)}
        return {modality: Image.fromarray(item) if modality == IMAGE else replace_surrogates(item)}


def _library_name(modality: str) -> str:
    return AUDIO if modality == SOUND else modality
