"""Tiny models of open_clip with random weights, in the folders that open_clip itself writes."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from random_models import siglip_tokenizer

from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.pretrained.open_clip_library import open_clip_for

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "width": 32, "heads": 2, "layers": 2}
CLIP: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
SIGLIP: dict[str, Any] = {  # as the SigLIP2 of open_clip's zoo, with the smallest tower of timm
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 128,
        "hf_tokenizer_name": "timm/its-tokenizer",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 32,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}
RESNET: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": TEXT,
}
ROBERTA: dict[str, Any] = {  # its text tower is of transformers
    "embed_dim": 24,
    "vision_cfg": VISION,
    "text_cfg": {
        "hf_model_name": "owner/tower",
        "hf_tokenizer_name": "owner/tower",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
        "context_length": 14,
    },
}
CONFIGS = {"clip": CLIP, "siglip": SIGLIP, "resnet": RESNET, "roberta": ROBERTA}
PICTURES: dict[str, dict[str, Any]] = {
    "clip": {},
    "siglip": {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    },
    "resnet": {"resize_mode": "longest", "fill_color": 90, "mean": [0.0] * 3, "std": 0.9},
    "roberta": {"interpolation": "bilinear", "resize_mode": None},
}


@capture_warnings()
def open_clip_folder(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """A model of that kind of CONFIGS: open_clip_config.json, open_clip_model.safetensors, and the
    files of its tokenizer and text tower where it has some."""
    folder.mkdir(parents=True)
    config = CONFIGS[kind]
    said = {"model_cfg": config, "preprocess_cfg": PICTURES[kind]}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    if "hf_tokenizer_name" in config["text_cfg"]:
        tokenizer = siglip_tokenizer()
        if "hf_model_name" in config["text_cfg"]:  # which has a mask, by its padding
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.save_pretrained(folder)
        if "hf_model_name" in config["text_cfg"]:
            transformers.RobertaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=120,  # counted from that of the padding
                pad_token_id=tokenizer.pad_token_id,
            ).save_pretrained(folder)
    torch.manual_seed(seed)
    save_weights(folder, random_network(config, folder).state_dict())
    return folder


def random_network(config: dict[str, Any], folder: Path) -> torch.nn.Module:
    """The network of a configuration as it is drawn, by the global seed."""
    library = open_clip_for("tests")
    settings = deepcopy(config)
    custom = settings.pop("custom_text", False)
    if "hf_model_name" in settings["text_cfg"]:
        settings["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
        custom = True
    network = (library.CustomTextCLIP if custom else library.CLIP)(**settings)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.01, 0.05)  # untrained all are 1, and pictures hardly make a difference
        elif value.ndim and not value.any():
            torch.nn.init.normal_(value, std=0.5 if name.endswith("weight") else 0.02)
    return network


def save_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """What open_clip saves of a network."""
    kept = {name: value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(kept, folder / "open_clip_model.safetensors")
