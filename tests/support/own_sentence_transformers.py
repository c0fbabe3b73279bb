"""The models of a folder as sentence-transformers itself runs them, called directly in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from family_differences import TEXTS, Library
from own_transformers import middle_by_chance
from PIL import Image
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from tiny_sounds import RATE

from chiasm.pipeline.encoders import unit
from chiasm.pipeline.pretrained.hub import capture_warnings

NAMES = {"sound": "audio"}  # of a modality, where it is another than ours
QUIET: dict[str, Any] = {"show_progress_bar": False, "convert_to_numpy": True}


def given(modality: str, raw: Sequence[Any]) -> list[dict[str, Any]]:
    """Items by the library's names."""
    if modality == "sound":
        return [{"audio": {"array": one, "sampling_rate": RATE}} for one in raw]
    return [{modality: one} for one in raw]


class Kept(Exception):
    """The network need not run."""


def recorded(
    network: Any, run: Callable[[list[Any]], object], items: Sequence[Any]
) -> dict[str, list[torch.Tensor]]:
    """The tensors that would go into a network when something runs, for one item at a time: the
    library sorts a batch. Which sounds are longer than the model takes is left out: it is read by a
    CLAP that fuses alone."""
    kept, preprocess = list[dict[str, Any]](), network.preprocess

    def keep(*arguments: Any, **named: Any) -> Any:
        kept.append(dict(preprocess(*arguments, **named)))
        raise Kept

    with mock.patch.object(network, "preprocess", keep):
        for item in items:
            with suppress(Kept):
                run([item])
    assert len(kept) == len(items)
    names = [name for name, value in kept[0].items() if torch.is_tensor(value)]
    return {name: [one[name] for one in kept] for name in names if name != "is_longer"}


class Sentence(Library):
    """One vector an item. Queries go through its `encode_query`, rows through its
    `encode_document`. A router sends each modality to a network of its own."""

    asks = True
    load: type = SentenceTransformer

    def __init__(self, folder: Path) -> None:
        with capture_warnings():
            self.model: Any = self.load(str(folder), device="cpu", local_files_only=True)
        modules = [one for one in self.model.modules() if isinstance(one, Transformer)]
        self.reads = tuple(type(one.model).__name__ for one in modules)
        self.network = f"{self.load.__name__} ({', '.join(self.reads)})"
        named = {NAMES.get(name, name): name for name in ("image", "sound")}
        self.seen = tuple(ours for name, ours in named.items() if self.model.supports(name))

    def finish(self, rows: Any) -> Any:
        return unit(rows)

    def encoded(self, encode: Callable[..., Any], items: list[dict[str, Any]]) -> Any:
        with middle_by_chance():
            return self.finish(encode(items, batch_size=len(items), **QUIET))

    def made(self, model: Any, modality: str, items: Sequence[Any]) -> dict[str, Any]:
        return recorded(model._network, lambda some: model.encode(modality, some), items)

    def inputs(self, modality: str, raw: Sequence[Any]) -> dict[str, Any]:
        encode = self.model.encode_document
        return recorded(self.model, lambda some: self.encoded(encode, some), given(modality, raw))

    def level(self, model: Any, modality: str) -> float:
        if modality == "sound":
            return 1.0
        modules = (getattr(one, "processor", None) for one in self.model.modules())
        (pictures, *_) = (
            found for one in modules if (found := getattr(one, "image_processor", None))
        )
        return float(np.mean(pictures.image_std)) / pictures.rescale_factor

    def rows(self, modality: str, raw: Sequence[Any], inputs: dict[str, Any]) -> Any:
        return self.encoded(self.model.encode_document, given(modality, raw))

    def text_rows(self, texts: Sequence[str]) -> Any:
        return self.encoded(self.model.encode_document, given("text", texts))

    def queries(self, modality: str, raw: Sequence[Any]) -> Any:
        return self.encoded(self.model.encode_query, given(modality, raw))

    def joint(self, rows: Mapping[str, Any], raw: Mapping[str, Sequence[Any]]) -> Any:
        return self.pairs(self.model.encode_document, rows, raw)

    def joint_queries(self, rows: Mapping[str, Any], raw: Mapping[str, Sequence[Any]]) -> Any:
        return self.pairs(self.model.encode_query, rows, raw)

    def pairs(self, encode: Any, rows: Mapping[str, Any], raw: Mapping[str, Sequence[Any]]) -> Any:
        """Read together by a model that can, else the mean."""
        if not self.model.supports(tuple(sorted(NAMES.get(name, name) for name in raw))):
            return super().joint(rows, raw)
        columns = [given(name, some) for name, some in raw.items()]
        together = [
            {name: value for part in parts for name, value in part.items()}
            for parts in zip(*columns, strict=True)
        ]
        return self.encoded(encode, together)


class SeveralVectors(Sentence):
    """A vector for each token."""

    joins = False
    load = MultiVectorEncoder

    def finish(self, rows: Any) -> Any:
        return [np.asarray(one, np.float32) for one in rows]


class Scorer(Sentence):
    """A CrossEncoder: scores of pairs, and no vectors. It takes no pair that is longer than the
    model."""

    captions = tuple(text for text in TEXTS if len(text) < 100)
    encodes, asks, matches = False, False, True
    load = CrossEncoder

    def made(self, model: Any, modality: str, items: Sequence[Any]) -> dict[str, Any]:
        def run(some: Sequence[Any]) -> object:
            return model.match((modality, some), ("text", ["a"]), np.array([[0, 0]]))

        return recorded(model._network, run, items)

    def inputs(self, modality: str, raw: Sequence[Any]) -> dict[str, Any]:
        pairs = [({"text": "a"}, {"image": one}) for one in raw]
        return recorded(self.model, lambda some: self.model.predict(some, **QUIET), pairs)

    def score(self, picture: Image.Image, inputs: dict[str, torch.Tensor], text: str) -> float:
        return float(self.model.predict([({"text": text}, {"image": picture})], **QUIET)[0])
