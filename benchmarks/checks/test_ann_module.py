"""The module for other benchmarks, as their runners call it."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from chiasm.index import IndexSettings

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


def test_lists_give_minus_one_where_they_have_no_more_rows(chiasm_class, monkeypatch):
    """Of 12,000 rows, so that there are lists; one row is zeros, and so is a query."""
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(12_000, 8)), rng.normal(size=(4, 8))
    rows[77] = queries[3] = 0
    untuned = partial(IndexSettings, tune=False)
    monkeypatch.setitem(chiasm_class.fit_ood.__globals__, "IndexSettings", untuned)
    algorithm = chiasm_class("angular", 0.9)
    algorithm.fit(rows)
    assert not algorithm.plan.exact
    units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    algorithm.set_query_arguments(1000)  # every list
    algorithm.batch_query(queries, 10)
    nearest = (units @ queries[:3].T).T.argsort(axis=1)[:, ::-1][:, :10]
    found = algorithm.get_batch_results()
    assert all({*some} == {*best} for some, best in zip(found, nearest, strict=False))
    assert found[3, 0] == 77  # what has no direction is alike
    few = algorithm.query(queries[0], 12_005)
    assert {*few[:12_000]} == {*range(12_000)} and (few[12_000:] == -1).all()
    algorithm.done()
