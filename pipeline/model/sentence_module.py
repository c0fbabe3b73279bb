"""The joint model as a module of sentence-transformers: texts, pictures, or both as one input.

    model = SentenceTransformer(modules=[JointModel.load("pocket")])
    boat = Image.open("boat.png")
    model.encode(["a red boat"]), model.encode([boat])
    model.encode([{"text": "a red boat", "image": boat}])

What `save_pretrained` writes is a model folder: `JointModel.load(DIR)` reads it again, and so does
`--encoder pocket:DIR`. (SentenceTransformer(DIR) asks for trust for every class that is not the
library's own.) A text that reads like the path or the URL of a picture
is a text here: nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from sentence_transformers.base.modality_types import Modality
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from torch.nn import functional

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import SHIPPED, load_model, save_model
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import Tokenizer


class JointModel(InputModule):
    """A `JointNetwork` with its tokenizer behind the interface of `InputModule`."""

    def __init__(self, network: JointNetwork, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.network = network
        self.words = tokenizer  # not `tokenizer`, which the library would save its own way

    @property
    def modalities(self) -> list[Modality]:
        """What `encode` takes: either kind, or both in one dict."""
        return ["text", "image", ("image", "text"), ("text", "image")]

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Tensor | Any]:
        """B inputs, each a text, a picture (PIL, or uint8 (H, W, 3)), or a dict of both ->
        ids (P, T) int64 and text_rows (P,), pixels uint8 (Q, 3, S, S) and image_rows (Q,), and
        rows (B,), zeros. UsageError for anything else; a prompt is refused: the model knows none.
        """
        if prompt:
            raise UsageError("prompt", expected="none: this model knows no prompts", found=prompt)
        parts = [_parts(item) for item in inputs]
        text_rows = [row for row, (text, _) in enumerate(parts) if text is not None]
        image_rows = [row for row, (_, image) in enumerate(parts) if image is not None]
        config = self.network.config
        texts = [text for text, _ in parts if text is not None]
        side = config.image.side
        pixels = [to_pixels(image, side) for _, image in parts if image is not None]
        made: dict[str, Tensor | Any] = {"rows": torch.zeros(len(parts), dtype=torch.int64)}
        if texts:
            made["ids"] = torch.from_numpy(self.words.batch(texts, config.text.context))
            made["text_rows"] = torch.tensor(text_rows)
        if pixels:
            made["pixels"] = torch.from_numpy(np.stack(pixels))
            made["image_rows"] = torch.tensor(image_rows)
        return made

    def forward(self, features: dict[str, Tensor | Any], **kwargs: Any) -> dict[str, Tensor | Any]:
        """What `preprocess` made -> the same and sentence_embedding (B, E) float32, unit rows:
        of a text or a picture its vector, of both their joint vector."""
        network, rows = self.network, len(features["rows"])
        vectors = torch.zeros(rows, network.config.dim, device=network.log_scale.device)
        both = torch.zeros(rows, dtype=torch.bool, device=vectors.device)
        text = image = None
        if "ids" in features:
            text = network.text_modality(features["ids"])
            vectors = vectors.index_copy(0, features["text_rows"], text.vector)
        if "pixels" in features:
            image = network.image_modality(features["pixels"])
            of_image = features["image_rows"]
            if text is not None:
                both[of_image] = torch.isin(of_image, features["text_rows"])
            vectors = vectors.index_add(0, of_image, image.vector)  # a mean where both are
        vectors = functional.normalize(vectors, dim=-1)
        if network.fusion is not None and text is not None and image is not None and both.any():
            pairs = both.nonzero()[:, 0]
            fused = network.fuse(
                text.take(torch.searchsorted(features["text_rows"], pairs)),
                image.take(torch.searchsorted(features["image_rows"], pairs)),
            )
            vectors = vectors.index_copy(0, pairs, fused.joint)
        return {**features, "sentence_embedding": vectors}

    def get_embedding_dimension(self) -> int:
        """E."""
        return self.network.config.dim

    def get_sentence_embedding_dimension(self) -> int:
        """E, by the name it had before."""
        return self.network.config.dim

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any):
        """Write a model folder, as `chiasm train` does."""
        network = self.network
        save_model(Path(output_path), network.state_dict(), network.config, self.words)

    @classmethod
    def load(
        cls,
        model_name_or_path: str = "pocket",
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> JointModel:
        """The shipped model for `pocket`, else that of a folder; raises EncoderError."""
        shipped = model_name_or_path == "pocket" and not subfolder
        folder = SHIPPED if shipped else Path(model_name_or_path) / subfolder
        return cls(*load_model(folder))


def _parts(item: Any) -> tuple[str | None, Image.Image | None]:
    """The text and the picture of one input; UsageError where it is neither."""
    if isinstance(item, str):
        return item, None
    if isinstance(item, Mapping) and item and item.keys() <= {"text", "image"}:
        text, image = item.get("text"), item.get("image")
        if isinstance(text, str) or (text is None and image is not None):
            return text, None if image is None else _picture(image)
    if not isinstance(item, Mapping):
        return None, _picture(item)
    raise UsageError(
        "input",
        expected='a text, a picture, or {"text": ..., "image": ...}',
        found=f"a {type(item).__name__} of {sorted(map(str, item))}",
    )


def _picture(item: Any) -> Image.Image:
    found, do = f"a {type(item).__name__}", "open files yourself: paths and URLs are not fetched"
    if isinstance(item, Image.Image):
        if item.width and item.height:
            return item.convert("RGB")
        found, do = f"a picture of {item.width} x {item.height} pixels", ""
    if isinstance(item, np.ndarray):
        if item.dtype == np.uint8 and item.ndim == 3 and item.shape[2] == 3 and item.size:
            return Image.fromarray(cast(Any, item))
        found, do = f"an array of {item.dtype} {item.shape}", ""
    raise UsageError(
        "input", expected="a picture as PIL.Image or uint8 (H, W, 3)", found=found, do=do
    )
