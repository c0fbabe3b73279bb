"""Kinds of folders that no encoder is made of, by the door that they were named at, and what the
one line says that refuses each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from family_differences import FLOAT32
from safetensors.torch import load_file, save_file
from tiny_answerers import blip_folder
from tiny_llava import TOWER
from tokenizers import Tokenizer, models

from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained.hub import capture_warnings

WEIGHTS, OPEN_CLIP = "model.safetensors", "open_clip_model.safetensors"


@dataclass(frozen=True)
class Refused:
    """door: what the folder is named at. family: of FAMILIES, whose folder `spoil` changes; "" for
    one that it makes. says: a part of the line, FOLDER in place of the path."""

    door: str
    family: str
    spoil: Callable[[Path], object]
    says: str


def line_of(kind: Refused, folder: Path) -> str:
    """What is said of a folder that `folder_of` has made; AssertionError where it is taken."""
    try:
        load_encoder(f"{kind.door}:{folder}", FLOAT32)
    except EncoderError as error:
        return str(error).replace(str(folder), "FOLDER")
    raise AssertionError(f"{kind.door}:{folder} is taken")


def folder_of(kind: Refused, folder: Path, made: Callable[[str], Path]) -> Path:
    """Make the folder; made: that of a family, which stays as it is."""
    if kind.family:
        shutil.copytree(made(kind.family), folder)
    kind.spoil(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a file of JSON."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def configured(**changes: Any) -> Callable[[Path], None]:
    """config.json with these fields; an object is changed field by field."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        nested = {
            name: {**config[name], **value} if isinstance(value, dict) and name in config else value
            for name, value in changes.items()
        }
        edit_json(folder / "config.json", **nested)

    return change


def lose_padding(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            edit_json(folder / name, pad_token=None)


def weights(
    change: Callable[[dict[str, torch.Tensor]], object], name: str = WEIGHTS
) -> Callable[[Path], None]:
    """The file of weights, changed."""

    def run(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return run


def without(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """Weights without those whose name has this part."""

    def run(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return run


def pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def open_clip_files(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / OPEN_CLIP)
    (folder / "config.json").rename(folder / "open_clip_config.json")


def adapter(folder: Path) -> None:
    base = {"base_model_name_or_path": "openai/clip-vit-base-patch32"}
    (folder / "adapter_config.json").write_text(json.dumps(base))


@capture_warnings()
def model_of_texts(folder: Path) -> None:
    """A BERT."""
    config = transformers.BertConfig(vocab_size=9, max_position_embeddings=16, **TOWER)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2}, unk_token="[UNK]"))
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(folder)


def pickle_a_part(folder: Path) -> None:
    (folder / "1_Dense").mkdir()
    (folder / "1_Dense" / "pytorch_model.bin").write_bytes(b"x")


def open_clip_pickle(folder: Path) -> None:
    (folder / OPEN_CLIP).rename(folder / "open_clip_pytorch_model.bin")


def of_open_clip(**changes: Any) -> Callable[[Path], None]:
    """Its model_cfg with these fields."""

    def change(folder: Path) -> None:
        file = folder / "open_clip_config.json"
        said = json.loads(file.read_text())
        file.write_text(json.dumps({**said, "model_cfg": {**said["model_cfg"], **changes}}))

    return change


def keep(_: Path) -> None:
    """Nothing: the folder is refused as it is."""


CODE = {"AutoModel": "owner--name.Model"}
REFUSED = {
    "a BLIP that captions, without the head that matches": Refused(
        "hf", "", blip_folder, "found a model that answers (type 'blip', architecture BlipForC"
    ),
    "a BLIP-2 for retrieval, as an encoder": Refused(
        "hf", "hf blip2-itm", keep,
        "matches; take it as a matcher: --rerank hf:FOLDER:20, chiasm match or filter",
    ),
    "an X-CLIP, of videos": Refused(
        "hf", "hf clip", configured(model_type="xclip"), "found a model of videos (type 'xclip')"
    ),
    "an OWL-ViT, which finds things": Refused(
        "hf", "hf clip", configured(model_type="owlvit"), "found type 'owlvit', architecture"
    ),
    "a LLaVA, which answers": Refused(
        "hf", "hf clip", configured(model_type="llava"), "answers (type 'llava', architecture"
    ),
    "a model of texts alone": Refused("hf", "", model_of_texts, "found a model of texts alone ("),
    "a model of pictures alone": Refused(
        "hf", "hf clip", configured(model_type="vit"), "a model of pictures alone (type 'vit', arc"
    ),
    "a model of sound alone": Refused(
        "hf", "hf clip", configured(model_type="wav2vec2"), "found a model of sound (type 'wav2v"
    ),
    "code of its own, such as jina-clip": Refused(
        "hf", "hf clip", configured(model_type="jina_clip", auto_map=CODE),
        "found type 'jina_clip', which needs code of its own, which is never run here; take a",
    ),
    "a type that transformers does not have": Refused(
        "hf", "hf clip", configured(model_type="new"), "type 'new', which transformers "
    ),
    "a PEFT adapter": Refused(
        "hf", "hf clip", adapter, "expected a whole model, found a PEFT adapter of openai/clip-"
    ),
    "no padding token": Refused(
        "hf", "hf clip", lose_padding, 'padding token, found none; name its padding token as "pad'
    ),
    "another projection_dim than that of the weights": Refused(
        "hf", "hf clip", configured(projection_dim=16), "text_projection.weight of shape (16, 32)"
    ),
    "no weights of one tower": Refused(
        "hf", "hf clip", weights(without("text_model")), "all weights of a CLIPModel, found 36 mis"
    ),
    "more layers in config.json than in the weights": Refused(
        "hf", "hf clip", configured(text_config={"num_hidden_layers": 3}), "found 16 missing, the "
    ),
    "a tokenizer with more tokens than the model": Refused(
        "hf", "hf clip", configured(text_config={"vocab_size": 9}), "expected at most 9 tokens, as"
    ),
    "weights with NaN": Refused(
        "hf", "hf clip", weights(lambda all: all["visual_projection.weight"].fill_(torch.nan)),
        "found image: NaN or infinity; its weights are damaged: fetch or train",
    ),
    "a pickle alone": Refused(
        "hf", "hf clip", pickle_only, "found pytorch_model.bin alone, a pickle, which is never re"
    ),
    "files of open_clip": Refused(
        "hf", "hf clip", open_clip_files, "found files of open_clip; take oc:FOLDER"
    ),
    "a SentenceTransformer": Refused(
        "hf", "st llava", keep, "found a SentenceTransformer; take st:FOLDER"
    ),
    "a CLAP whose extractor shortens in another way": Refused(
        "hf", "hf clap",
        lambda folder: edit_json(folder / "preprocessor_config.json", truncation="fusion"),
        "expected sounds shortened by rand_trunc",
    ),
    "a SigLIP whose texts are not padded in full": Refused(
        "st", "hf siglip", keep, "whose texts have to be padded to full length; take hf:FOLDER"
    ),
    "a CLAP that fuses by chance": Refused(
        "st", "hf clap, fused", keep, "depend on chance, found a CLAP that fuses pieces; name it"
    ),
    "one of texts alone": Refused(
        "st", "", model_of_texts, "a SentenceTransformer for pictures and texts, found one withou"
    ),
    "a CrossEncoder, as an encoder": Refused(
        "st", "st cross-encoder", keep, "found a CrossEncoder, which scores pairs and gives no vec"
    ),
    "pickled weights of a part": Refused(
        "st", "st clip", pickle_a_part, "found 1_Dense/pytorch_model.bin alone, a pickle, which is"
    ),
    "no weights of a layer": Refused(
        "st", "st clip", weights(without(".layers.1.")),
        "expected all weights of the model, found none for text_model.encoder.la",
    ),
    "weights of a further layer": Refused(
        "st", "st clip", configured(text_config={"num_hidden_layers": 1}),
        "found weights that it does not take: text_model.encoder.layers.1.layer_norm1.bias",
    ),
    "another projection_dim": Refused(
        "st", "st clip", configured(projection_dim=12),
        "expected all weights of the model, found another shape of text_projection.weight",
    ),
    "a multi-vector model without a layer": Refused(
        "st", "st multi-vector", weights(without(".layers.1.")),
        "expected all weights of the model, found none for language_model.layers.1",
    ),
    "a multi-vector model said to be of one vector": Refused(
        "st", "st multi-vector",
        lambda folder: edit_json(
            folder / "config_sentence_transformers.json", model_type="SentenceTransformer"
        ),
        "expected",
    ),
    "files of transformers": Refused("oc", "hf clip", keep, "take hf:FOLDER"),
    "a CoCa": Refused(
        "oc", "oc clip", of_open_clip(multimodal_cfg={}), "expected a model of two towers, found "
    ),
    "a setting that open_clip does not have": Refused(
        "oc", "oc clip", of_open_clip(spin=1), "expected a model_cfg that open_clip 3."
    ),
    "no weights of the projection": Refused(
        "oc", "oc clip", weights(without("visual.proj"), OPEN_CLIP), "1 missing, the first visual"
    ),
    "positions of another length, which open_clip would resize": Refused(
        "oc", "oc clip",
        weights(lambda all: all.update(positional_embedding=torch.zeros(77, 32)), OPEN_CLIP),
        "expected positional_embedding of shape (16, 32), as its model_cfg says, found (77, 32)",
    ),
    "a pickle of open_clip alone": Refused(
        "oc", "oc clip", open_clip_pickle, "found open_clip_pytorch_model.bin alone, a pickle"
    ),
    "no config.json of its text tower of transformers": Refused(
        "oc", "oc roberta", lambda folder: (folder / "config.json").unlink(),
        "the config.json of its text tower owner/tower",
    ),
}  # fmt: skip
