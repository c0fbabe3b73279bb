"""A Ray of our own that does not start at once; what a busy machine makes of `ray.init`; memory."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray
from conftest import environment

from chiasm.jobs.cluster import placement
from chiasm.jobs.cluster import session as cluster
from chiasm.jobs.cluster.ray_folder import ray_folder
from chiasm.jobs.config import WorkerSettings
from chiasm.pipeline.errors import ChiasmError


@pytest.fixture
def starts(monkeypatch):
    """Makes `ray.init` fail so many times as Ray does, then do nothing; -> the calls."""
    calls = []

    def fail(times):
        def init(**options):
            calls.append(options)
            if len(calls) <= times:
                raise Exception("The current node timed out during startup.\nMore.")

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shut down"))
        monkeypatch.setattr(ray, "cluster_resources", dict)
        return calls

    return fail


def test_a_start_that_timed_out_is_tried_again(starts):
    calls = starts(1)
    cluster._start_local(WorkerSettings())
    assert [call == "shut down" for call in calls] == [False, True, False]
    for options in (calls[0], calls[2]):  # each attempt has an empty folder of its own
        assert options["runtime_env"].pop("working_dir")
    assert calls[0] == calls[2] and calls[0]["address"] == "local"


def test_a_ray_that_does_not_start_is_told_in_one_line(starts):
    starts(99)
    with pytest.raises(ChiasmError) as caught:
        cluster._start_local(WorkerSettings())
    assert str(caught.value) == (
        "Ray on this machine: expected a start within 30 s, in 3 attempts, found The current node "
        "timed out during startup.; run the same command again when the machine is less busy; what "
        f"Ray says is in {ray_folder()}/session_latest/logs"
    )


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of one living node of 4 cores and a dead one of 64 with accelerators."""
    small = {"CPU": 4.0, "memory": 8.0 * 2**30}
    large = {"CPU": 64.0, "GPU": 8.0, "memory": 512.0 * 2**30}
    nodes = [{"Alive": True, "Resources": small}, {"Alive": False, "Resources": large}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)


def test_a_worker_that_fits_a_node_may_wait_for_it(nodes):
    placement.require_placeable(WorkerSettings(cpus=4, memory_gb=8))


@pytest.mark.parametrize("requested", [{"cpus": 5}, {"gpus": 1}, {"memory_gb": 9}])
def test_a_worker_larger_than_every_node_is_refused_unless_there_is_an_autoscaler(
    requested, nodes, monkeypatch, caplog
):
    monkeypatch.setattr(placement, "has_autoscaler", lambda: False)
    with pytest.raises(ChiasmError) as caught:
        placement.require_placeable(WorkerSettings(**requested))
    assert "found nodes with 4 cores, 0 accelerators, 8 GB, and no autoscaler" in str(caught.value)
    monkeypatch.setattr(placement, "has_autoscaler", lambda: True)
    placement.require_placeable(WorkerSettings(**requested))
    assert "the nodes now there have 4 cores, 0 accelerators, 8 GB" in caplog.text


@pytest.mark.parametrize(("types", "there"), [(["node_1", ""], False), (["node_1", "gpu"], True)])
def test_nodes_of_a_type_of_their_own_are_those_of_no_autoscaler(types, there, monkeypatch):
    nodes = [SimpleNamespace(node_id="1", ray_node_type_name=name) for name in types]
    status = SimpleNamespace(active_nodes=nodes[:1], idle_nodes=nodes[1:])
    monkeypatch.setattr(placement, "get_cluster_status", lambda address: status)
    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert placement.has_autoscaler() == there


# Takes and frees as much as a layer's activations, some times; prints the page faults.
ALLOCATING = """
import ctypes, resource
from chiasm.jobs.cluster.worker import _keep_freed_memory

_keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    place = ctypes.c_void_p(library.malloc(20 << 20))
    library.memset(place, 1, 20 << 20)
    library.free(place)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc is told")
def test_what_a_layer_frees_is_not_faulted_in_again():
    ran = subprocess.run(
        [sys.executable, "-c", ALLOCATING], env=environment(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    pages = (20 << 20) // resource.getpagesize()
    assert int(ran.stdout) < 2 * pages
