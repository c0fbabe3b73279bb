"""An encoder of your own, for a modality that is no picture: waves, arrays in `npy` members.

    python examples/your_own_encoder.py

Waves and words share a space of four dimensions, one for each band of frequencies. A model of yours
would load its weights in `load` and run them in `encode`.
"""

import io

import numpy as np

from chiasm import build_index, make_collection, open_collection, register_encoder
from chiasm.pipeline.arrays import decode_array
from chiasm.pipeline.encoders import BaseEncoder, Encoded, Input, unit
from chiasm.pipeline.shards import write_shard

RATE = 256  # samples a second
BANDS = {"slow": 2, "steady": 8, "quick": 24, "fast": 64}  # Hz


class WaveEncoder(BaseEncoder):
    """Waves (T,) float32 and texts -> (B, 4) float32, unit rows."""

    name = "waves"
    fingerprint = "0123456789abcdef0123456789abcdef"  # of weights and preprocessing: one space
    precision, device = "float32", "cpu"

    def __init__(self):
        self.preprocessing = {"wave": "one second, mean removed"}
        self.modalities = {"wave": Input(extensions=("npy",)), "text": Input()}
        self.dims = dict.fromkeys(("wave", "text", "joint"), len(BANDS))

    def preprocess(self, modality, raw):
        """One member's bytes, or one caption -> an item of `encode`."""
        if modality == "text":
            return raw
        # Without pickle, within limits; what is no such array is dropped, with the reason.
        wave = decode_array(raw, shape=(RATE,), kinds="f").astype(np.float32)
        return wave - wave.mean()

    def encode(self, modality, items):
        """B items -> B unit vectors; queries and joint vectors have defaults in BaseEncoder."""
        if modality == "text":
            rows = [[float(word in text.split()) for word in BANDS] for text in items]
        else:
            spectra = np.abs(np.fft.rfft(np.stack(items)))  # (B, RATE // 2 + 1), 1 Hz each
            rows = spectra[:, list(BANDS.values())]
        return Encoded(unit(np.asarray(rows, np.float32) + 1e-3))


def load(model, settings):
    """What follows the colon of `waves:MODEL`, and EncoderSettings -> the encoder."""
    return WaveEncoder()


def wave_of(words, rng):
    seconds = np.arange(RATE) / RATE
    sines = [np.sin(2 * np.pi * (BANDS[word] * seconds + rng.random())) for word in words]
    return (sum(sines) + 0.1 * rng.normal(size=RATE)).astype(np.float32)


def samples(rng):
    """A webdataset sample for each pair of bands: {"__key__", "npy" bytes, "txt"}."""
    pairs = [(one, other) for one in BANDS for other in BANDS]
    for number, (one, other) in enumerate(pairs):
        caption = f"a {one} wave" if one == other else f"a {one} wave on a {other} one"
        member = saved(wave_of({one, other}, rng))
        yield {"__key__": f"{number:03d}", "npy": member, "txt": caption}


def saved(wave):
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, wave)
    return file.getvalue()


def show(title, answer):
    print(title)
    for hit in answer:
        print(f"  {hit.rank}. {hit.score:.3f}  {hit.caption}")


# For this process. A package with the entry point `waves = your_package:load` in the group
# `chiasm.encoders` makes it known to Ray workers and to a later `chiasm search` too.
register_encoder("waves", load)

rng = np.random.default_rng(0)
shard = write_shard("waves-00000.tar", samples(rng))
summary = make_collection([shard], "waves.chiasm", "waves")
print(f"{summary.rows} rows of {summary.samples} samples")
build_index("waves.chiasm")

collection = open_collection("waves.chiasm")
waves = collection.search("a fast wave", column="wave", k=3)
show("waves for words:", waves)

first = np.load(io.BytesIO(waves[0].data("wave")))  # the member, by one range read of its shard
print(f"the first is loudest at {np.abs(np.fft.rfft(first))[1:].argmax() + 1} Hz")

wave = saved(wave_of({"slow", "quick"}, rng))  # or the path of a file
answer = collection.search(members={"wave": wave}, column="text", k=3)
show("words for a wave that is slow and quick:", answer)
