"""How close chiasm's vectors are to those of the model's own processor and forward in float32.

    python -m benchmarks.fidelity --photos SHARD... [--samples 200] [--device auto]

Makes a CLIP ViT-B/32 and a SigLIP base (16 px patches, 224 px) with random weights, and embeds
real photographs and their captions through our path, in bfloat16 and in float32, with
`decode.exact` and as earlier releases decoded, and through transformers alone. Vectors of random
towers lie close together, so cosines are taken after the mean of the reference is subtracted from
both sides. Prints a table and writes benchmarks/results/fidelity.json; exits 1 where a bar is
missed.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps

from chiasm.pipeline.encoders import Encoder, load_encoder
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.metrics import ranks_of
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import resolve_device
from chiasm.pipeline.pretrained.hub import capture_warnings
from chiasm.pipeline.records import Sample
from chiasm.pipeline.resizing import by_pillow
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from tests.support.encoding import encode_images, encode_texts
from tests.support.random_models import clip_folder, siglip_folder

RESULT = Path(__file__).parent / "results" / "fidelity.json"
MODELS: dict[str, Callable[[Path], Path]] = {
    "CLIP ViT-B/32": lambda at: clip_folder(
        at,
        vision={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "patch_size": 32,
        },
    ),
    "SigLIP base/16": siglip_folder,
}
WAYS = {  # name -> precision, decoding, the least mean-centred cosine of any row
    "bfloat16": ("bfloat16", DecodeSettings(), 0.99),
    "float32": ("float32", DecodeSettings(), 0.999),
    "float32, decode.exact": ("float32", DecodeSettings(exact=True), 0.9999),
    # As earlier releases did: Pillow's steps, with large JPEGs scaled.
    "float32, older decoding": ("float32", DecodeSettings(scaled=True, exact=True), 0.99),
}
BATCH = 50


def photographs(specs: list[str], wanted: int) -> list[Sample]:
    """The first `wanted` samples with a picture and a caption."""
    found: list[Sample] = []
    for shard in list_shards(specs):
        for item in read_samples(shard, ReadSettings()):
            if isinstance(item, Sample) and item.picture and item.captions:
                found.append(item)
            if len(found) == wanted:
                return found
    return found


def chunks(items: list[Any]) -> Iterator[list[Any]]:
    for at in range(0, len(items), BATCH):
        yield items[at : at + BATCH]


@torch.inference_mode()
def reference(
    folder: Path, pictures: list[bytes], texts: list[str], device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Image and text vectors (N, D), (M, D) float32 unit rows, by transformers alone."""
    with capture_warnings():
        processor = transformers.AutoProcessor.from_pretrained(folder)
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    model = model.eval().to(device)
    images, captions = [], []
    for batch in chunks(pictures):
        opened = [ImageOps.exif_transpose(Image.open(io.BytesIO(data))) for data in batch]
        pixels = processor.image_processor(
            [image.convert("RGB") for image in opened], return_tensors="pt"
        )
        images.append(model.get_image_features(**pixels.to(device)).pooler_output)
    for batch in chunks(texts):
        tokens = processor.tokenizer(
            batch, padding="max_length", truncation=True, return_tensors="pt"
        )
        captions.append(model.get_text_features(**tokens.to(device)).pooler_output)
    found = [torch.nn.functional.normalize(torch.cat(rows).float()) for rows in (images, captions)]
    return found[0].cpu().numpy(), found[1].cpu().numpy()


def ours(
    encoder: Encoder, decoding: DecodeSettings, pictures: list[bytes], texts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The same through chiasm's decoding, preprocessing and encoder."""
    target = encoder.modalities["image"].side
    with by_pillow(decoding.exact):
        pixels = [
            encoder.preprocess("image", decode(data, decoding, target).pixels) for data in pictures
        ]
    images = [encode_images(encoder, batch) for batch in chunks(pixels)]
    captions = [encode_texts(encoder, batch) for batch in chunks(texts)]
    return np.concatenate(images), np.concatenate(captions)


def agreement(made: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Mean-centred cosines of the rows, and the share whose nearest reference row is their own."""
    mean = wanted.mean(axis=0)
    left, right = made - mean, wanted - mean
    cosines = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    nearest_is_own = ranks_of(made @ wanted.T, np.arange(len(made))) == 0
    return {
        "cosine_min": round(float(cosines.min()), 6),
        "cosine_mean": round(float(cosines.mean()), 6),
        "nearest_is_own": round(float(nearest_is_own.mean()), 6),
    }


def measure(pictures: list[bytes], texts: list[str], device: str) -> dict[str, Any]:
    """model -> way -> image or text -> agreement."""
    found: dict[str, Any] = {}
    for name, make in MODELS.items():
        with tempfile.TemporaryDirectory() as place:
            folder = make(Path(place) / "model")
            wanted = reference(folder, pictures, texts, device)
            found[name] = {}
            for way, (precision, decoding, _) in WAYS.items():
                encoder = load_encoder(f"hf:{folder}", EncoderSettings(precision, device))
                made = ours(encoder, decoding, pictures, texts)
                found[name][way] = {
                    "image": agreement(made[0], wanted[0]),
                    "text": agreement(made[1], wanted[1]),
                }
    return found


def report(found: dict[str, Any]) -> bool:
    """Print the table; True where every bar is met."""
    met = True
    print(f"{'model':15}  {'way':26}  {'of':5}  {'min':>8}  {'mean':>8}  {'bar':>6}  nearest own")
    for name, ways in found.items():
        for way, kinds in ways.items():
            bar = WAYS[way][2]
            for kind, measured in kinds.items():
                met &= measured["cosine_min"] >= bar and measured["nearest_is_own"] == 1
                print(
                    f"{name:15}  {way:26}  {kind:5}  {measured['cosine_min']:8.6f}  "
                    f"{measured['cosine_mean']:8.6f}  {bar:6}  {measured['nearest_is_own']:.1%}"
                )
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", nargs="+", required=True, help="shards of photographs")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    samples = photographs(given.photos, given.samples)
    pictures = [sample.picture for sample in samples if sample.picture]
    texts = list(dict.fromkeys(sample.captions[0] for sample in samples))
    device = str(resolve_device(given.device))
    found = measure(pictures, texts, device)
    met = report(found)
    result = {
        "pictures": len(pictures),
        "texts": len(texts),
        "device": device,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "bars_met": met,
        "models": found,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
