"""What the server of tests/support/commands.py imports before any command.

Without faiss, which comes after torch where a command uses both.
"""

from small_ray import start_small

import chiasm.jobs.cli.app
import chiasm.jobs.cli.embed
import chiasm.jobs.cli.search
import chiasm.jobs.cli.train_pocket
import chiasm.jobs.cli.train_two_tower
import chiasm.pipeline.encoders.pocket  # noqa: F401

start_small()
