"""An index under random edits, builds and queries, beside a model of dictionaries and numpy.

After every step an answer over all rows has the ids and scores that the model has. The model knows
nothing of segments: what is embedded, which rows of it the index has, and what each generation had.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from crash_points import Unflushed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from recorded_disk import using
from tiny_collection import add_shard, make_collection, unit_rows

from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.build import (
    ById,
    ByKey,
    add_to_index,
    compact_index,
    delete_from_index,
    roll_back_index,
)
from chiasm.index.segments import FORMS, numbers
from chiasm.index.verify import check
from chiasm.pipeline.collection import parquet_name
from chiasm.pipeline.collection.ledger import ledger_name
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder

DIM = 8
NAMES = ("s0", "s1", "s2", "s3")
# exact_below=1: by lists, as soon as there are enough rows to learn one from.
KINDS = {
    "lists": IndexSettings(tune=False, exact_below=1, segment_rows=100, keep_seconds=0),
    "exact": IndexSettings(tune=False, segment_rows=100, keep_seconds=0),
    "int8": IndexSettings(
        tune=False, exact_below=1, segment_rows=100, keep_seconds=0, vectors="int8"
    ),
}

Rows = dict[int, np.ndarray]  # by row number: its vector


class EditedIndex(RuleBasedStateMachine):
    """steps: how many edits and queries all machines have made."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self._temporary = tempfile.TemporaryDirectory(prefix="chiasm-edits-")
        self.path = str(Path(self._temporary.name) / "c")
        self.folder = Folder(self.path)
        self.embedded: dict[str, tuple[str, Rows]] = {}  # by shard: its edition and rows
        self.indexed: dict[str, tuple[str, Rows]] = {}
        self.history: dict[int, dict[str, tuple[str, Rows]]] = {}
        self.count = 0
        self._disk = using(Unflushed())
        self._disk.__enter__()

    def teardown(self) -> None:
        self._disk.__exit__(None, None, None)
        self._temporary.cleanup()

    @initialize(kind=st.sampled_from([*KINDS]))
    def build_first(self, kind: str) -> None:
        self.settings = KINDS[kind]
        shutil.copytree(_first(kind), self.path)
        for number, name in enumerate(NAMES[:2]):
            vectors = unit_rows(np.random.default_rng(number), 60, DIM)
            self.embedded[name] = "0000000a", self._stored(vectors)
        self.indexed = copy.deepcopy(self.embedded)
        self._made(1)
        self.searcher = open_collection(self.path)
        self.seen = 1  # the generation that it has open

    @rule(name=st.sampled_from(NAMES), rows=st.integers(0, 12))
    def embed(self, name: str, rows: int) -> None:
        self.count += 1
        edition, rng = f"{self.count:08x}", np.random.default_rng(1000 + self.count)
        vectors = unit_rows(rng, rows, DIM)
        add_shard(self.folder, name, rows, dim=DIM, edition=edition, vectors=vectors)
        self.embedded[name] = edition, self._stored(vectors)

    @precondition(lambda self: len(self.embedded) > 1)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.embedded)))
        del self.embedded[name]
        for file in (parquet_name(shard_id(name)), ledger_name(shard_id(name))):
            self.folder.remove(file)

    @rule()
    def add(self) -> None:
        self._publish(*self._add())

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self._publish(*self._delete(data))

    @rule(number=st.integers(0, 70))
    def delete_key(self, number: int) -> None:
        """A key that is in one shard, or in none that is indexed."""
        key = f"{NAMES[number % 4]}/{number // 4:06d}"
        _, rows = self.indexed.get(NAMES[number % 4], ("", {}))
        if number // 4 in rows:
            command, model = lambda: self._run_deletion(ByKey([key])), copy.deepcopy(self.indexed)
            del model[NAMES[number % 4]][1][number // 4]
            self._publish(command, lambda: model)

    @rule()
    def compact(self) -> None:
        self._publish(*self._compact())

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(numbers(self.folder)))
        self._publish(
            lambda: roll_back_index(self.path, number, settings=self.settings).generation,
            lambda: copy.deepcopy(self.history[number]),
        )

    @precondition(lambda self: any(rows for _, rows in self.embedded.values()))
    @rule(data=st.data(), with_edit=st.booleans())
    def build(self, data: st.DataObject, with_edit: bool) -> None:
        """Perhaps with a deletion while it runs: what is deleted then stays so."""
        gone = self._draw_ids(data) if with_edit else []
        self._remove(self.indexed, gone)
        build = partial(build_index, self.path, columns=["image"], settings=self.settings)
        number = self._interleaved(lambda: build().generation, gone)
        self.indexed = copy.deepcopy(self.embedded)
        self._remove(self.indexed, gone)
        self._made(number)

    @rule(data=st.data(), first=st.sampled_from(["add", "compact", "delete"]))
    def two_at_once(self, data: st.DataObject, first: str) -> None:
        """A deletion is published while another edit is about to be."""
        gone = self._draw_ids(data)
        if not gone:
            return
        self._remove(self.indexed, gone)
        command, model = {
            "add": self._add,
            "compact": self._compact,
            "delete": lambda: self._delete(data),
        }[first]()
        number = self._interleaved(command, gone)
        self.indexed = model()
        self._made(number)

    @rule()
    def query(self) -> None:
        self._compare(open_collection(self.path, allow_stale=True), self.indexed)

    @rule(refresh=st.booleans())
    def query_an_open_searcher(self, refresh: bool) -> None:
        """It answers from the generation that it has open, or, where files of it that it needs are
        gone, from the one that is live."""
        if refresh:
            self.searcher.refresh()
        self._compare(self.searcher, None)

    @rule()
    def check(self) -> None:
        findings = [str(one) for one in check(self.path).findings if "stale" not in str(one)]
        assert findings == []

    def _add(self) -> tuple[Callable[[], int], Callable[[], dict]]:
        def model() -> dict:
            kept = {
                name: one for name, one in self.indexed.items()
                if name in self.embedded and self.embedded[name][0] == one[0]
            }  # fmt: skip
            return copy.deepcopy(self.embedded) | kept

        return lambda: add_to_index(self.path, settings=self.settings).generation, model

    def _compact(self) -> tuple[Callable[[], int], Callable[[], dict]]:
        return (
            lambda: compact_index(self.path, settings=self.settings).generation,
            lambda: copy.deepcopy(self.indexed),
        )

    def _delete(self, data: st.DataObject) -> tuple[Callable[[], int | None], Callable[[], dict]]:
        gone = self._draw_ids(data)
        model = copy.deepcopy(self.indexed)
        self._remove(model, gone)
        return lambda: self._run_deletion(ById(gone)) if gone else None, lambda: model

    def _run_deletion(self, selection: ById | ByKey) -> int:
        return delete_from_index(
            self.path, lambda generation: selection, settings=self.settings
        ).generation

    def _draw_ids(self, data: st.DataObject) -> list[str]:
        """Some rows that the index has, a whole shard's now and then."""
        ids = sorted(_ids(self.indexed))
        if not ids:
            return []
        if data.draw(st.integers(0, 5)) == 0:
            shard = data.draw(st.sampled_from(ids)).partition("/")[0]
            return [one for one in ids if one.startswith(f"{shard}/")]
        return data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=20, unique=True))

    @staticmethod
    def _remove(model: dict[str, tuple[str, Rows]], ids: list[str]) -> None:
        for one in ids:
            name, _, rest = one.partition("-0123456789/")
            row, _, edition = rest.partition("@")
            if name in model and model[name][0] == edition:
                model[name][1].pop(int(row), None)

    def _publish(
        self, command: Callable[[], int | None], model: Callable[[], dict[str, tuple[str, Rows]]]
    ) -> None:
        number = command()
        if number is not None:
            self.indexed = model()
            self._made(number)

    def _interleaved(self, command: Callable[[], int | None], gone: list[str]) -> int:
        """Run `command`, and delete rows when it is about to put its manifest."""
        real, left = Folder.write_new, [gone] if gone else []

        def write_new(folder: Folder, name: str, data: bytes, run_id: str) -> bool:
            if left and name.startswith("index/generations/"):
                self._made(self._run_deletion(ById(left.pop())))
            return real(folder, name, data, run_id)

        with patch.object(Folder, "write_new", write_new):
            number = command()
        if left:  # there was nothing to change
            number = self._run_deletion(ById(left.pop()))
        return numbers(self.folder)[-1] if number is None else number

    def _made(self, number: int) -> None:
        type(self).steps += 1
        self.history[number] = copy.deepcopy(self.indexed)

    def _stored(self, vectors: np.ndarray) -> Rows:
        """As the index scores by them."""
        halves = vectors.astype(np.float16)
        form = FORMS[self.settings.vectors]
        return dict(enumerate(form.opened(form.stored(halves)).take(slice(None))))

    def _compare(self, index, model: dict[str, tuple[str, Rows]] | None) -> None:
        type(self).steps += 1
        xq = unit_rows(np.random.default_rng(type(self).steps), 2, DIM)
        wanted = 5 + sum(len(rows) for _, rows in self.indexed.values())
        try:
            scores, positions = index.search_vectors(xq, wanted)
        except CollectionError:
            assert "image" not in index.generation.manifest.columns
            return
        if model is None:
            model = self.history[index.generation.number]
        expected = _ids(model)
        rows = index.rows({int(one) for one in positions.ravel() if one >= 0})
        for query, near, found in zip(xq, scores, positions, strict=True):
            ids = [rows[int(one)].id for one in found if one >= 0]
            truth = np.sort([float(query @ vector) for vector in expected.values()])[::-1]
            best = truth[:wanted]
            assert len(set(ids)) == len(ids) == len(best)
            assert np.allclose(near[: len(best)], best, atol=1e-5)
            assert np.isneginf(near[len(best) :]).all()
            own = [float(query @ expected[one]) for one in ids]
            assert np.allclose(near[: len(best)], own, atol=1e-5)
        assert len(index) == len(expected)


def shard_id(name: str) -> str:
    return f"{name}-0123456789"


def _ids(model: dict[str, tuple[str, Rows]]) -> dict[str, np.ndarray]:
    return {
        f"{shard_id(name)}/{row}@{edition}": vector
        for name, (edition, rows) in model.items()
        for row, vector in rows.items()
    }


_made: dict[str, tempfile.TemporaryDirectory] = {}


def _first(kind: str) -> str:
    """A collection of 2 x 60 rows, indexed once a process."""
    if kind not in _made:
        _made[kind] = tempfile.TemporaryDirectory(prefix="chiasm-first-")
        path = Path(_made[kind].name)
        make_collection(path, ())
        for number, name in enumerate(NAMES[:2]):
            vectors = unit_rows(np.random.default_rng(number), 60, DIM)
            add_shard(Folder(str(path)), name, 60, dim=DIM, vectors=vectors)
        build_index(str(path), columns=["image"], settings=KINDS[kind])
    return _made[kind].name
