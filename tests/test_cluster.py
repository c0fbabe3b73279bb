"""A Ray of our own that does not start at once; what a busy machine makes of `ray.init`."""

from __future__ import annotations

import pytest
import ray

from chiasm.jobs.cluster import session as cluster
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
    assert calls[0] == calls[2] and calls[0]["address"] == "local"


def test_a_ray_that_does_not_start_is_told_in_one_line(starts):
    starts(99)
    with pytest.raises(ChiasmError) as told:
        cluster._start_local(WorkerSettings())
    assert str(told.value) == (
        "Ray on this machine: expected a start within 30 s, in 2 attempts, found The current node "
        "timed out during startup.; run the same command again when the machine is less busy"
    )
