"""A Ray without the processes that no test asks: the autoscaler, what copies the workers' output to
the driver, and the server of the dashboard. They take half of the CPU time of Ray's start.

Tests of how a Ray starts and stops, of what is installed and of a cluster have the whole of it:
tests/test_kills.py, tests/test_packaging.py, tests/test_submit.py.
"""

from __future__ import annotations

from ray._private.node import Node


def start_small() -> None:
    """Every Ray that this process starts from now on, or a fork of it, is a small one."""

    def left_out(self: Node) -> None:
        pass

    def without_server(
        self: Node, *, include_dashboard: bool | None, raise_on_failure: bool
    ) -> None:
        self._webui_url = None

    Node.start_monitor = Node.start_log_monitor = left_out
    Node.start_api_server = without_server
