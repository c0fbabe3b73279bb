"""What models of sentence-transformers are given: bounded pictures, texts for a tokenizer."""

from __future__ import annotations

from PIL import Image

# A batch of 64 photographs of 12 megapixels is 2.3 GB of pixels; at this bound it is 400 MB. The
# bound lies above the 1.8 megapixels that Qwen3-VL-Embedding looks at, which is more than most do.
LARGEST = 2 << 20  # pixels


def shrunk(image: Image.Image) -> Image.Image:
    """The picture at no more than LARGEST pixels, in its proportions."""
    shrink = (LARGEST / (image.width * image.height)) ** 0.5
    if shrink >= 1:
        return image
    size = max(1, int(image.width * shrink)), max(1, int(image.height * shrink))
    return image.resize(size, Image.Resampling.BICUBIC)


def clean(text: str) -> str:
    """Command lines and sloppy json carry lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
