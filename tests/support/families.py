"""Every family that an encoder or a matcher is made of, by its door: a tiny folder with random
weights, and the same model as its own library runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from family_differences import Library
from open_clip_models import CONFIGS, open_clip_folder
from own_open_clip import OpenClip
from own_sentence_transformers import Scorer, Sentence, SeveralVectors
from own_transformers import OWN, Clap
from random_families import EIGHT, ENCODERS, MATCHERS, SIDE, TOWER, WIDTH
from random_models import clap_folder, clip_folder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_llava import cross_encoder_folder, llava_folder, tiling_folder
from tiny_multi_vector import colpali_folder, multi_vector_folder

from chiasm.pipeline.pretrained.hub import capture_warnings

PROMPTS = {"query": "find: ", "document": "read: "}


@dataclass(frozen=True)
class Family:
    """door: what its names begin with. make: writes its folder below the one that is given."""

    door: str
    make: Callable[[Path], Path]
    own: Callable[[Path], Library]


@capture_warnings()
def _saved(modules: list[Any], folder: Path, prompts: dict[str, str] | None = None) -> Path:
    """A SentenceTransformer of these modules."""
    network = SentenceTransformer(modules=modules, device="cpu", prompts=prompts)
    network.save_pretrained(str(folder), create_model_card=False)
    return folder


@capture_warnings()
def _of(folder: Path, **options: Any) -> Transformer:
    """The module of a folder of transformers."""
    return Transformer(str(folder), **options)


def st_clip(folder: Path) -> Path:
    """A CLIP."""
    return _saved([_of(ENCODERS["clip"](folder / "clip"))], folder / "st", PROMPTS)


def st_siglip(folder: Path) -> Path:
    """A SigLIP that pads its texts in full."""
    padded = {"text": {"padding": "max_length", "max_length": 64}}
    siglip = _of(ENCODERS["siglip"](folder / "siglip"), processing_kwargs=padded)
    return _saved([siglip], folder / "st")


def st_routed(folder: Path) -> Path:
    """Queries through one CLIP, what is searched through another."""
    tiny: Any = {"side": SIDE, "width": WIDTH, "tower": TOWER, "vision": EIGHT}
    query, document = (_of(clip_folder(folder / str(n), seed=n, **tiny)) for n in (1, 2))
    return _saved([Router.for_query_document([query], [document])], folder / "st", PROMPTS)


def st_llava(folder: Path) -> Path:
    """A vision-language model whose last token is the vector: pairs are read together."""
    made = llava_folder(folder / "llava", transformers.LlavaModel)
    return _saved([_of(made), Pooling(32, "lasttoken")], folder / "st", PROMPTS)


def st_llava_next(folder: Path) -> Path:
    """One that reads a picture in tiles."""
    made = tiling_folder(folder / "tiling")
    return _saved([_of(made), Pooling(32, "lasttoken")], folder / "st")


def st_clap(folder: Path) -> Path:
    return _saved([_of(clap_folder(folder / "clap"))], folder / "st")


def st_three(folder: Path) -> Path:
    """Sounds and texts by a CLAP, pictures by a CLIP, side by side."""
    sounds, pictures = (
        _of(make(folder / name))
        for name, make in (("clap", clap_folder), ("clip", ENCODERS["clip"]))
    )
    routes: dict[str, Any] = {"audio": [sounds], "text": [sounds], "image": [pictures]}
    return _saved([Router(routes)], folder / "st")


def _hf(name: str, make: Callable[[Path], Path]) -> Family:
    return Family("hf", lambda at: make(at / "model"), OWN[name])


def _oc(kind: str) -> Family:
    return Family("oc", lambda at: open_clip_folder(at / "model", kind), OpenClip)


def _st(make: Callable[[Path], Path], own: type[Sentence] = Sentence) -> Family:
    return Family("st", make, own)


FAMILIES: dict[str, Family] = {
    **{f"hf {name}": _hf(name, make) for name, make in (ENCODERS | MATCHERS).items()},
    "hf clap": Family("hf", lambda at: clap_folder(at / "model"), Clap),
    "hf clap, fused": Family("hf", lambda at: clap_folder(at / "model", fused=True), Clap),
    **{f"oc {kind}": _oc(kind) for kind in CONFIGS},
    "st clip": _st(st_clip),
    "st siglip": _st(st_siglip),
    "st routed": _st(st_routed),
    "st llava": _st(st_llava),
    "st llava-next": _st(st_llava_next),
    "st clap": _st(st_clap),
    "st clap and clip": _st(st_three),
    "st colpali": _st(colpali_folder, SeveralVectors),
    "st multi-vector": _st(lambda at: multi_vector_folder(at, PROMPTS), SeveralVectors),
    "st cross-encoder": _st(cross_encoder_folder, Scorer),
}
