"""Lanes: what they make is the same on any number of cores, and in order; no thread is left."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import make_shard, until
from test_batches import Pixels, ours, picture, sample

from chiasm.pipeline import in_order
from chiasm.pipeline.batches import BatchSettings, batches, cores
from chiasm.pipeline.collection import Tally, parquet_name
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.lanes import Budget, lanes, work_on_batches
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Dropped, Note, Sample
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.timing import Stopwatch


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert ours() == []


def keys_of(batch):
    return [row.key for row in batch.rows]


def run(items, work=keys_of, *, encoder=None, **options):
    tally, settings = Tally(), BatchSettings(**{"size": 4, **options})
    made = lanes(iter(items), encoder or Pixels(), DecodeSettings(), settings, work, tally=tally)
    return list(made), tally


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_bytes_of_a_collection_do_not_depend_on_the_number_of_lanes(tmp_path, precision):
    encoder = load_encoder("pocket", EncoderSettings(precision=precision, device="cpu"))
    (shard,) = list_shards([str(make_shard(tmp_path / "a.tar", 22, broken=3))])
    threads = torch.get_num_threads()
    found = set()
    for count in (1, 2, 4):
        folder = Folder(str(tmp_path / str(count)))
        settings = EmbedSettings(batch=BatchSettings(size=5, decode_threads=count))
        embed_shard(shard, encoder, folder, settings, run_id="r1")
        found.add(folder.read_bytes(parquet_name(shard.id)))
    assert len(found) == 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("queue", [1, 128])
def test_what_is_made_comes_in_the_order_of_the_tar(threads, queue):
    late = threading.Event()

    def work(batch):
        if batch.rows[0].key == "k0" and threads > 1:
            late.wait(60)  # until a later batch is done
        else:
            late.set()
        return keys_of(batch)

    made, tally = run(map(sample, range(30)), work, decode_threads=threads, queue=queue)
    assert [len(keys) for keys in made] == [4] * 7 + [2]
    assert [key for keys in made for key in keys] == [f"k{n}" for n in range(30)]
    assert tally.dropped == tally.notes == []


ODD = [
    sample(0),
    sample(1, b"broken"),
    Note("k1", "no_caption"),
    Sample("text", {}, ("only text",), None),
    Note("text", "no_picture"),
    Dropped("lost", "read", "empty"),
    *map(sample, range(2, 4)),
    Note("k3", "late_member"),
    sample(4, b""),
    Note("k4", "no_caption"),
    *map(sample, range(5, 9)),
    Note("", "no_end_mark"),
]


class Costly(Pixels):
    """Of each picture the forward pass takes as many bytes as its number says."""

    def cost(self, modality, item):
        return int(item[0, 0, 0]) if modality == "image" else 0


@pytest.mark.parametrize("size", [1, 2, 3, 4, 50])
@pytest.mark.parametrize("most", [1, 9, 1000])
def test_batches_and_what_the_tally_hears_are_those_of_an_accelerator(size, most):
    options = {"size": size, "max_bytes": most, "decode_threads": 3}
    made, tally = run(ODD, encoder=Costly(), **options)
    other, settings = Tally(), BatchSettings(**options)
    wanted = [
        keys_of(batch)
        for batch in batches(iter(ODD), Costly(), DecodeSettings(), settings, tally=other)
    ]
    assert made == wanted
    assert (tally.dropped, tally.notes) == (other.dropped, other.notes)
    assert [drop.key for drop in tally.dropped] == ["k1", "lost", "k4"]
    assert [note.key for note in tally.notes] == ["text", "k3", ""]


def test_an_exception_of_the_work_comes_out_after_what_was_made_before():
    def work(batch):
        if "k9" in keys_of(batch):
            raise KeyError("k9")
        return keys_of(batch)

    seen = []
    with pytest.raises(KeyError, match="k9"):
        for keys in lanes(
            map(sample, range(40)), Pixels(), DecodeSettings(), BatchSettings(4), work
        ):
            seen += keys
    assert seen == [f"k{n}" for n in range(8)]


def test_an_exception_of_the_reader_comes_out_after_the_rows_before_it():
    def items():
        yield from map(sample, range(5))
        raise SourceError("a.tar", found="a worn-out disk")

    seen = []
    with pytest.raises(SourceError, match="worn-out"):
        for keys in lanes(items(), Pixels(), DecodeSettings(), BatchSettings(4), keys_of):
            seen += keys
    assert seen == [f"k{n}" for n in range(5)]


def test_no_more_than_a_batch_a_lane_is_read_and_closing_ends_the_reader():
    gate, taken, closed = threading.Event(), [], []

    def items():
        try:
            for number in range(1000):
                taken.append(number)
                yield sample(number)
        finally:
            closed.append(True)

    def work(batch):
        gate.wait(60)
        return keys_of(batch)

    settings = BatchSettings(size=4, decode_threads=2, queue=1)
    made = lanes(items(), Pixels(), DecodeSettings(), settings, work)
    first = threading.Thread(target=lambda: next(made))
    first.start()
    until(lambda: len(taken) >= 9)
    assert len(taken) == 9  # two batches, and the sample at which the second one ends
    gate.set()
    first.join()
    made.close()
    assert closed == [True]


def test_a_lane_reads_no_more_encoded_bytes_than_its_limit_and_one_picture(monkeypatch):
    monkeypatch.setattr("chiasm.pipeline.lanes.LANE_BYTES", 250_000)
    large = (sample(number, picture(number) + bytes(100_000)) for number in range(7))
    made, _ = run(large, size=50, decode_threads=1)
    assert [len(keys) for keys in made] == [3, 3, 1]


def test_an_exception_of_a_lane_that_begins_comes_out(monkeypatch):
    def fail(count):
        if threading.current_thread() is not threading.main_thread():
            raise KeyError("begin")

    monkeypatch.setattr("chiasm.pipeline.lanes.set_operator_threads", fail)
    with pytest.raises(KeyError, match="begin"):
        run(map(sample, range(8)), decode_threads=2)


def test_who_stops_the_program_does_not_wait_for_work_that_hangs(monkeypatch):
    monkeypatch.setattr(in_order, "PATIENCE", 0.05)
    began, go_on = threading.Event(), threading.Event()

    def work(items, made, unwanted):
        began.set()
        go_on.wait(60)

    def read(source, taken, unwanted):
        taken.append(source.take())

    crew = in_order.InOrder(iter(range(3)), read, work, threads=1, ahead=2, clock=Stopwatch())
    with pytest.raises(KeyboardInterrupt), crew:
        assert began.wait(60)
        raise KeyboardInterrupt
    assert ours() != []
    go_on.set()
    for thread in ours():
        thread.join(60)


def test_each_lane_has_its_own_number_of_operator_threads():
    before = torch.get_num_threads()
    met = threading.Barrier(2, timeout=60)

    def work(batch):
        met.wait()  # both lanes are at work
        return torch.get_num_threads()

    options = BatchSettings(size=1, decode_threads=2)
    for count in (1, 3):
        made = lanes(
            map(sample, range(4)), Pixels(), DecodeSettings(), options, work, operator_threads=count
        )
        assert list(made) == [count] * 4
    assert torch.get_num_threads() == before


def test_lanes_share_the_bytes_of_the_forward_pass():
    budget, order = Budget(10), []
    inside, leave = threading.Event(), threading.Event()

    def small():
        with budget.holding(4):
            order.append("small")
            inside.set()
            leave.wait(60)

    def larger():
        with budget.holding(7):
            order.append("larger")

    one = threading.Thread(target=small)
    one.start()
    inside.wait(60)
    other = threading.Thread(target=larger)
    other.start()
    with budget.holding(6):
        order.append("beside")  # which fits
    assert order == ["small", "beside"]
    leave.set()
    one.join()
    other.join()
    with budget.holding(1000):  # more than all of it, alone
        assert order == ["small", "beside", "larger"]


@pytest.mark.parametrize(("device", "lane"), [("cpu", True), ("cuda", False), ("", False)])
def test_only_a_model_on_a_cpu_works_in_lanes(device, lane):
    def work(batch):
        return threading.current_thread().name.startswith("chiasm-decode"), keys_of(batch)

    settings = BatchSettings(size=3, decode_threads=2)
    made = work_on_batches(
        map(sample, range(7)), Pixels(), DecodeSettings(), settings, work, device=device
    )
    found = list(made)
    assert [where for where, _ in found] == [lane] * 3
    assert [key for _, keys in found for key in keys] == [f"k{n}" for n in range(7)]


def test_cores_are_those_that_are_reserved(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores() == BatchSettings().threads == 3
    assert BatchSettings(decode_threads=2).threads == 2
    for odd in ("", "0", "x", "2,1"):
        monkeypatch.setenv("OMP_NUM_THREADS", odd)
        assert cores() >= 1
