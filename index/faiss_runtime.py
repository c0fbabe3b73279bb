"""The one place that loads FAISS, and settles how it lives with torch in one process.

faiss and torch each bring an OpenMP runtime, and in the wild the order of their imports has decided
between an answer and a segmentation fault. Settled here: faiss is loaded by this function alone,
when an index is first touched, and the read path loads its encoder before that: where torch came
first, faiss finds torch's runtime and there is one. The other order gives two, which on Linux live
side by side. tests/test_faiss_runtime.py runs both, with forward passes and searches from several
threads. The number of threads is never set here: faiss takes what the process has, OMP_NUM_THREADS
or all cores.
"""

from __future__ import annotations

import functools
from importlib import metadata
from types import ModuleType

from chiasm.pipeline.errors import ChiasmError


@functools.cache
def load_faiss() -> ModuleType:
    """The module `faiss`; raises ChiasmError naming both extras where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ChiasmError(
            "the package faiss",
            expected="faiss-cpu or faiss-gpu-cuvs, exactly one of them",
            found=str(error),
            do="pip install 'chiasm[cpu]', or 'chiasm[gpu]' on a machine with CUDA",
        ) from error
    both = [name for name in ("faiss-cpu", "faiss-gpu-cuvs") if _installed(name)]
    if len(both) > 1:
        raise ChiasmError(
            "the package faiss",
            expected="faiss-cpu or faiss-gpu-cuvs, exactly one of them",
            found="both, one over the other",
            do=f"pip uninstall {' '.join(both)}, then install the one you want",
        )
    return faiss


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
