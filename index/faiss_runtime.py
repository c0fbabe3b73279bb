"""The one place that loads FAISS, and settles how it lives with torch in one process.

faiss and torch each bring their own OpenMP runtime, and in the wild the order of their imports has
decided between an answer and a segmentation fault. Settled here: faiss is loaded when an index is
first touched, by this function only, after torch if the process has torch already; both orders,
with forward passes and searches from several threads, are run by tests/test_faiss_runtime.py in
fresh processes. The number of threads is never set for the whole process: faiss takes
OMP_NUM_THREADS or all cores.
"""

from __future__ import annotations

import functools
from types import ModuleType

from pipeline.errors import ChiasmError


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
    return faiss
