"""The one place that imports FAISS, and in which order with torch.

faiss and torch each bring an OpenMP runtime, and the order of their imports can decide between an
answer and a segmentation fault. So faiss is imported by this function alone, when an index is first
opened, and the read path loads its encoder before that: faiss then uses torch's runtime. The other
order loads two runtimes, which on Linux work side by side. tests/test_faiss_runtime.py runs both,
with forward passes and searches from several threads. The number of threads is never set here:
faiss takes OMP_NUM_THREADS or all cores.
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
    installed = [name for name in ("faiss-cpu", "faiss-gpu-cuvs") if _installed(name)]
    if len(installed) > 1:
        raise ChiasmError(
            "the package faiss",
            expected="faiss-cpu or faiss-gpu-cuvs, exactly one of them",
            found="both, in one folder",
            do=f"pip uninstall {' '.join(installed)}, then install the one you want",
        )
    return faiss


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
