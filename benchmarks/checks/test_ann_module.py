"""The module for other benchmarks, as their runners call it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

MODULE = Path(__file__).parents[1] / "ann_benchmarks" / "module.py"


@pytest.fixture
def chiasm_class(monkeypatch):
    """`Chiasm` in a package of the layout that both frameworks have."""
    base = ModuleType("framework.algorithms.base.module")
    base.BaseANN = type("BaseANN", (), {})  # pyrefly: ignore
    monkeypatch.setitem(sys.modules, "framework.algorithms.base.module", base)
    for name in ("framework", "framework.algorithms", "framework.algorithms.base"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    spec = importlib.util.spec_from_file_location("framework.algorithms.chiasm.module", MODULE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Chiasm


def test_the_rows_that_a_runner_gave_are_found(chiasm_class):
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(400, 16)), rng.normal(size=(5, 16))
    nearest = (rows / np.linalg.norm(rows, axis=1, keepdims=True) @ queries.T).T.argsort(axis=1)
    for learn in (None, rng.normal(size=(40, 16))):
        algorithm = chiasm_class("angular", 0.9)
        algorithm.fit_ood(rows, learn, None)
        assert algorithm.query(queries[0], 10).tolist() == nearest[0, ::-1][:10].tolist()
        algorithm.set_query_arguments(2.0)
        algorithm.batch_query(queries, 10)
        assert algorithm.get_batch_results().tolist() == nearest[:, ::-1][:, :10].tolist()
        assert str(algorithm) == "Chiasm(recall=0.9, lists=2 x the plan's)"
        algorithm.done()
