"""faiss and torch in one process, in both orders of import, with several threads at once."""

from __future__ import annotations

import builtins
import subprocess
import sys

import numpy as np
import pytest
from conftest import environment

from chiasm.index import faiss_runtime
from chiasm.index.build.train import cluster
from chiasm.pipeline.errors import ChiasmError

TOGETHER = """
import sys, threading
import numpy as np
{first}
{second}
from chiasm.index.faiss_runtime import load_faiss
faiss = load_faiss()
base = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)
exact = faiss.index_factory(16, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)
cells = faiss.index_factory(16, "IVF16,SQ8", faiss.METRIC_INNER_PRODUCT)
cells.train(base)
for index in (exact, cells):
    index.add_with_ids(base, np.arange(3000))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
answers = []

def ask():
    for _ in range(10):
        with torch.inference_mode():
            xq = model(torch.ones(32, 16)).numpy()
        _, ids = exact.search(xq, 5)
        cells.search(xq, 5, params=faiss.SearchParametersIVF(nprobe=4))
    answers.append(sorted(ids[0].tolist()))

threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with torch.inference_mode():
    scores = (model(torch.ones(1, 16)).numpy() @ base.T)[0]
truth = np.argsort(-scores)[:5]
assert scores[truth].min() > np.delete(scores, truth).max() + 1e-4, "no near ties"
assert answers == [sorted(truth.tolist())] * 4, answers
print("well")
"""


@pytest.mark.parametrize("order", [("torch", "faiss"), ("faiss", "torch")], ids=" then ".join)
def test_torch_and_faiss_live_together_in_either_order(order):
    first, second = (f"import {name}" for name in order)
    ran = subprocess.run(
        [sys.executable, "-c", TOGETHER.format(first=first, second=second)],
        env={**environment(), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "well\n"), ran.stderr


def test_without_faiss_the_error_names_both_extras(monkeypatch):
    real = builtins.__import__

    def none_there(name, *rest, **named):
        if name == "faiss":
            raise ImportError("No module named 'faiss'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", none_there)
    with pytest.raises(ChiasmError) as caught:
        faiss_runtime.load_faiss.__wrapped__()
    assert str(caught.value) == (
        "the package faiss: expected faiss-cpu or faiss-gpu-cuvs, exactly one of them, found No "
        "module named 'faiss'; pip install 'chiasm[cpu]', or 'chiasm[gpu]' on a machine with CUDA"
    )


def test_centroids_are_learned_on_the_devices_that_faiss_has(monkeypatch):
    faiss, used = faiss_runtime.load_faiss(), []
    kmeans = faiss.Kmeans

    def recording(dim, lists, *, gpu, **options):
        used.append(gpu)
        return kmeans(dim, lists, **options)

    monkeypatch.setattr(faiss, "Kmeans", recording)
    for devices in (faiss.get_num_gpus(), 2):
        monkeypatch.setattr(faiss, "get_num_gpus", lambda devices=devices: devices)
        assert cluster(np.eye(8, dtype=np.float32), 2, seed=1).shape == (2, 8)
    assert used[1] == 2 and isinstance(used[0], int)
