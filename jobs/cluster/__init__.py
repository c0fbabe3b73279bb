"""Ray: the session, the pool of workers, jobs on a running cluster."""

from chiasm.jobs.cluster.actors import actor_pool
from chiasm.jobs.cluster.address import Address
from chiasm.jobs.cluster.packing import EXCLUDES
from chiasm.jobs.cluster.pool import Pool
from chiasm.jobs.cluster.session import connected, require_address
from chiasm.jobs.cluster.submit import follow, status_command, stop_command, submit
from chiasm.jobs.cluster.worker import Recipe

__all__ = [
    "EXCLUDES",
    "Address",
    "Pool",
    "Recipe",
    "actor_pool",
    "connected",
    "follow",
    "require_address",
    "status_command",
    "stop_command",
    "submit",
]
