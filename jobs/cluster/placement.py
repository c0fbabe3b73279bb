"""Can any node of the cluster ever hold a worker? Ray itself waits for ever, and says nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util.client import ray as client

from chiasm.jobs.config import WorkerSettings
from chiasm.pipeline.errors import ChiasmError

LOG = logging.getLogger(__name__)
PLACEMENT_SECONDS = 30.0  # without any worker placed, after which nodes are compared


def require_placeable(workers: WorkerSettings) -> None:
    """Raise ChiasmError where no node of a cluster of fixed size has what one worker reserves. With
    an autoscaler, which may start larger nodes, a warning is logged."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(fits(workers, node) for node in nodes):
        return
    expected = f"a node with what one worker reserves ({workers.resources()})"
    found = "; ".join(sorted({describe(node) for node in nodes})) or "no node"
    if has_autoscaler():
        LOG.warning("waiting for %s: the nodes now there have %s", expected, found)
        return
    raise ChiasmError(
        "the cluster",
        expected=expected,
        found=f"nodes with {found}, and no autoscaler to start others",
        do="lower workers.cpus, workers.gpus and workers.memory_gb by --set, or take another "
        "--preset",
    )


def fits(workers: WorkerSettings, node: Mapping[str, float]) -> bool:
    """Whether a node's resources, all of them free, hold one worker."""
    return (
        node.get("CPU", 0) >= workers.cpus
        and node.get("GPU", 0) >= workers.gpus
        and node.get("memory", 0) >= workers.memory_gb * 2**30
    )


def describe(node: Mapping[str, float]) -> str:
    """A node's resources as settings name them."""
    return (
        f"{node.get('CPU', 0):g} cores, {node.get('GPU', 0):g} accelerators, "
        f"{node.get('memory', 0) / 2**30:.0f} GB"
    )


def has_autoscaler() -> bool:
    """Whether nodes come and go by an autoscaler, as far as can be known: yes where nobody says.

    Ray names the type of a node that no autoscaler started after the node itself."""
    if client.is_connected():
        return True
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = [*status.active_nodes, *status.idle_nodes]
    fixed = [node.ray_node_type_name in ("", f"node_{node.node_id}") for node in nodes]
    return not all(fixed)
