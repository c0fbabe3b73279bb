"""How fast clip-retrieval embeds the same shards with the same weights on the same processor.

    python -m benchmarks.peer_clip_retrieval --model FOLDER --shards SHARD... [--cores N]

Builds the peer's own environment in benchmarks/.cache/clip-retrieval when it is not there, runs its
`inference` on local shards (jpg and txt members), float32, and prints a PeerRun as JSON. What is
counted is the peer's own account: from the moment it asks for the first batch to the moment its
last vectors are made, summed over batches. Importing, loading the model, its warm-up and writing
its one file of vectors are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from chiasm.pipeline.errors import (
    ChiasmError,
    EncoderError,
    SourceError,
    UsageError,
    require_at_least,
)
from chiasm.pipeline.pretrained.hub import capture_warnings

CACHE = Path(__file__).resolve().parent / ".cache" / "clip-retrieval"
PYTHON = (3, 11)  # what the pins were tried with; numpy < 2 and pyarrow < 16 end with 3.12
# Its own bounds: numpy < 2, pyarrow < 16, sentence-transformers < 3. Beyond them: setuptools < 80
# has the pkg_resources that clip-anytorch imports, and transformers < 5 gives features as tensors,
# which the peer divides in place. torch is of the version that constraints.txt has.
PINS = """
aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 albucore==0.0.23 albumentations==1.4.24
all-clip==1.3.0 aniso8601==10.0.1 annotated-types==0.8.0 anyio==4.16.0 attrs==26.1.0
autofaiss==2.18.0 blinker==1.9.0 braceexpand==0.1.7 certifi==2026.10.19.post1
charset-normalizer==3.5.3 click==8.5.1 clip-anytorch==2.6.0 clip-retrieval==2.45.0
cloudpickle==3.1.3 cwevals==0.0.1b1 dataclasses==0.6 distro==1.9.0 embedding-reader==1.8.1
exifread-nocycle==3.0.1 faiss-cpu==1.15.1 filelock==4.3.1 fire==0.5.0 flask==3.1.3
flask-cors==4.0.2 flask-restful==0.3.10 frozenlist==1.8.0 fsspec==2026.9.0 ftfy==6.3.1
googleapis-common-protos==1.76.0 h11==0.16.0 h5py==3.16.0 hf-xet==1.8.0 httpcore==1.0.9
httpx==0.28.1 huggingface-hub==0.36.2 idna==3.20 img2dataset==1.47.0 itsdangerous==2.2.0
jinja2==3.1.6 joblib==1.6.0 markupsafe==3.0.4 mpmath==1.3.0 multidict==7.2.1
multilingual-clip==1.0.10 narwhals==2.29.0 networkx==3.6.1 numpy==1.26.4 open-clip-torch==2.32.0
opencv-python-headless==4.11.0.86 opentelemetry-api==1.45.2
opentelemetry-exporter-http-transport==0.66b2 opentelemetry-exporter-otlp-common==0.66b2
opentelemetry-exporter-otlp-proto-common==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2
opentelemetry-proto==1.45.2 opentelemetry-sdk==1.45.2 opentelemetry-semantic-conventions==0.66b2
packaging==26.4 pandas==2.3.3 pillow==13.0.0 platformdirs==4.14.8 prometheus-client==0.26.0
propcache==0.5.4 protobuf==7.36.2 pyarrow==15.0.2 pydantic==2.14.4 pydantic-core==2.50.5
python-dateutil==4.0.0 pytz==2026.6 pyyaml==6.0.4 regex==2026.11.19 requests==2.34.2
safetensors==0.8.0 scikit-learn==1.9.1 scipy==1.15.3 sentence-transformers==2.7.0
setuptools==79.0.1 simsimd==6.5.16 six==1.17.0 sniffio==1.3.1 stringzilla==5.3.2 sympy==1.14.0
termcolor==3.3.0 threadpoolctl==3.8.0 timm==1.0.31 tokenizers==0.22.2 torch==2.13.0
torchvision==0.28.0 tqdm==4.70.1 transformers==4.57.6 typing-extensions==4.16.0
typing-inspection==0.4.5 tzdata==2026.6 urllib3==2.8.0 wandb==0.31.0 wcwidth==0.9.4
webdataset==0.2.111 werkzeug==3.1.9 xxhash==4.1.0 yarl==1.25.1
"""
# A torchvision built for CUDA beside a torch built for the processor cannot load its operators, and
# then fails over two that it means to describe. Names are enough: CLIP's preprocessing calls none.
OPERATORS = """\
import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
TOLD = "clip-retrieval", "all-clip", "torch", "torchvision", "transformers", "webdataset", "numpy"
VERSIONS = f"""\
import importlib.metadata, json, platform
told = {{name: importlib.metadata.version(name) for name in {TOLD!r}}}
print(json.dumps({{"python": platform.python_version(), **told}}))
"""
VOCABULARY = """\
import json
from clip.simple_tokenizer import SimpleTokenizer
print(json.dumps(SimpleTokenizer().encoder))
"""
# Its logger is a process that hears of no failure: the command would wait for it without end.
INFERENCE = """\
import json, multiprocessing, sys, traceback
from clip_retrieval import clip_inference
try:
    clip_inference(**json.loads(sys.argv[1]))
except Exception:
    traceback.print_exc()
    for child in multiprocessing.active_children():
        child.kill()
    sys.exit(1)
"""
INSTALL_SECONDS = 1800
BATCH = 64  # 15 % faster than 256, measured on two cores


@dataclass(frozen=True)
class PeerRun:
    """`seconds` are those of `pairs` alone, `command_seconds` those of the whole command."""

    pairs: int
    seconds: float
    pairs_per_second: float
    command_seconds: float
    batch: int
    workers: int
    cores: int
    versions: dict[str, str]


def environment() -> Path:
    """The peer's Python, with clip-retrieval beside it; minutes when it is not built yet.

    Raises ChiasmError where it cannot be built."""
    folder = CACHE / "venv"
    python, ready = folder / "bin" / "python", folder / "pins.txt"
    wanted = PINS + OPERATORS
    if ready.exists() and ready.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    log = CACHE / "install.log"
    log.unlink(missing_ok=True)
    _build([_base_python(), "-m", "venv", str(folder)], log)
    _build([str(python), "-I", "-m", "pip", "install", "-q", *PINS.split()], log)
    if subprocess.run([python, "-I", "-c", "import torchvision"], capture_output=True).returncode:
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "torchvision_operators.py").write_text(OPERATORS)
        # Worker processes need the names too, so they are given wherever this Python starts.
        (packages / "torchvision_operators.pth").write_text("import torchvision_operators\n")
    _build([str(python), "-I", "-c", "from clip_retrieval import clip_inference"], log)
    ready.write_text(wanted)
    return python


def run(shards: list[Path], model: Path, out: Path, *, cores: int) -> PeerRun:
    """Embed `shards` with the CLIP in the folder `model`, in float32 on `cores` cores.

    `out`, a folder that is not there or is empty, gets the vectors (`embeddings`), the model as the
    peer reads it and a log. Raises UsageError for arguments that cannot be meant, SourceError for a
    shard that is not there, EncoderError for a model that is no CLIP, ChiasmError where the
    environment or the run fails."""
    require_at_least(1, cores=cores, shards=len(shards))
    if out.exists() and any(out.iterdir()):
        raise UsageError(str(out), expected="an empty folder", found="files", do="name another")
    for shard in shards:
        if not shard.is_file():
            raise SourceError(str(shard), expected="a local tar", found="no such file")
    python = environment()
    _linked(shards, out / "shards")
    _respelled(model, out / "model", json.loads(_output_of(python, VOCABULARY)))
    # A worker without a shard of its own fails, and the run with it.
    workers = min(cores, len(shards))
    began = time.monotonic()
    _inference(python, out, len(shards), workers, cores)
    command_seconds = time.monotonic() - began
    pairs, seconds = counted(out / "embeddings" / "stats")
    return PeerRun(
        pairs=pairs,
        seconds=round(seconds, 2),
        pairs_per_second=round(pairs / seconds, 3),
        command_seconds=round(command_seconds, 2),
        batch=BATCH,
        workers=workers,
        cores=cores,
        versions=json.loads(_output_of(python, VERSIONS)),
    )


def counted(stats: Path) -> tuple[int, float]:
    """Pairs, and seconds over its batches, of all partitions in a folder of the peer's statistics.

    Every number in a file is a sum over batches, its `start_time` and `end_time` too. ChiasmError
    where nothing was embedded."""
    finished = [path for path in stats.glob("*.json") if not path.name.startswith("wip_")]
    parts = [json.loads(path.read_text()) for path in finished]
    pairs = sum(part.get("sample_count", 0) for part in parts)
    if not pairs:
        raise ChiasmError(
            str(stats),
            expected="statistics of pairs that clip-retrieval embedded",
            found=f"{len(parts)} files, 0 pairs",
            do="see whether the shards have jpg and txt members",
        )
    return pairs, sum(part["total_duration"] for part in parts)


def moved(table: torch.Tensor, own: Mapping[str, int], theirs: Mapping[str, int]) -> torch.Tensor:
    """Token embeddings (`own` pieces, D) -> (`theirs` pieces, D): a piece's row goes to the number
    it has there, pieces that the model does not know are zeros."""
    found = table.new_zeros(len(theirs), table.shape[1])
    shared = [piece for piece in own if piece in theirs]
    found[[theirs[piece] for piece in shared]] = table[[own[piece] for piece in shared]]
    return found


def _linked(shards: list[Path], folder: Path) -> None:
    """Plain names: the peer expands braces and commas in what it is given."""
    folder.mkdir(parents=True)
    for number, shard in enumerate(shards):
        (folder / f"{number:05}.tar").symlink_to(shard.resolve())


def _inference(python: Path, out: Path, shards: int, workers: int, cores: int) -> None:
    numbers = f"{{00000..{shards - 1:05}}}" if shards > 1 else "00000"
    options = {
        "input_dataset": f"shards/{numbers}.tar",
        "input_format": "webdataset",
        "output_folder": "embeddings",
        "output_partition_count": 1,
        "clip_model": "hf_clip:model",
        "batch_size": BATCH,
        "num_prepro_workers": workers,
    }
    settings = {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(cores),
        "WANDB_MODE": "disabled",
    }
    with (out / "log.txt").open("w") as log:
        ended = subprocess.run(
            [python, "-I", "-c", INFERENCE, json.dumps(options)],
            cwd=out,
            env={**os.environ, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if ended.returncode:
        raise _failed("clip-retrieval's inference", out / "log.txt")


@capture_warnings()
def _respelled(folder: Path, target: Path, theirs: Mapping[str, int]) -> None:
    """The model again for the peer, which reads every caption with OpenAI's vocabulary, `theirs`,
    whatever tokenizer the folder has. Nothing moves in a CLIP that was trained with that one."""
    try:
        model: Any = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        processor: Any = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise EncoderError(str(folder), expected="a CLIP's folder", found=str(error)) from error
    embedding, config = model.text_model.embeddings.token_embedding, model.config.text_config
    embedding.weight.data = moved(embedding.weight.data, tokenizer.get_vocab(), theirs)
    config.vocab_size = len(theirs)
    config.bos_token_id = theirs["<|startoftext|>"]
    config.eos_token_id = config.pad_token_id = theirs["<|endoftext|>"]
    model.save_pretrained(target)
    # Loaded by the peer's CLIPProcessor, though it uses the part for pictures alone.
    tokenizer.save_pretrained(target)
    processor.save_pretrained(target)


def _base_python() -> str:
    name = ".".join(map(str, PYTHON))
    found = sys.executable if sys.version_info[:2] == PYTHON else shutil.which(f"python{name}")
    if not found:
        raise ChiasmError(
            "clip-retrieval's environment",
            expected=f"Python {name}",
            found=f"{sys.version_info[0]}.{sys.version_info[1]} alone",
            do=f"put a python{name} on the path",
        )
    return found


def _build(command: list[str], log: Path) -> None:
    with log.open("a") as file:
        try:
            ended = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=INSTALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _failed("clip-retrieval's environment", log) from error
    if ended.returncode:
        raise _failed("clip-retrieval's environment", log)


def _failed(what: str, log: Path) -> ChiasmError:
    lines = log.read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "nothing said")
    return ChiasmError(what, expected="a command that succeeds", found=last, do=f"see {log}")


def _output_of(python: Path, code: str) -> str:
    """What the peer's Python prints of `code`, which must succeed."""
    ended = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    if ended.returncode:
        found = (ended.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise ChiasmError(
            "clip-retrieval's environment",
            expected="packages that can be asked",
            found=found,
            do=f"remove {CACHE} and run again",
        )
    return ended.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", nargs="+", type=Path, required=True, help="local tars")
    parser.add_argument("--model", type=Path, required=True, help="a folder with a CLIP")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="an empty folder; without one, nothing is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        try:
            result = run(given.shards, given.model, given.out or Path(place), cores=given.cores)
        except ChiasmError as error:
            sys.exit(str(error))
    print(json.dumps(asdict(result), indent=1))


if __name__ == "__main__":
    main()
