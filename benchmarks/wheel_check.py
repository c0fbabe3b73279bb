"""Does the wheel work in an empty environment, without the repository?

    python -m benchmarks.wheel_check --python python3.12 [--to FOLDER] [--pip-args "..."]

Builds the wheel, makes a virtual environment with that Python, installs `chiasm[cpu]` from the
wheel with constraints.txt and runs, outside the repository: the version, an import of the face, a
demo of 200 scenes, the examples. Prints steps and seconds; exits with 1 at the first failure.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.source_tree import ROOT, copy_sources

FACE = (
    "from chiasm import make_collection, open_collection, load_encoder; import chiasm.jobs.config"
)


class Failed(Exception):
    """A step that ended with another exit code than 0."""


def step(name: str, command: Sequence[object], cwd: Path, environment: Mapping[str, str]) -> str:
    """Run a command, print what it took, return its output; Failed where it failed."""
    began = time.monotonic()
    ran = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - began
    print(f"{name:24} {'ok' if ran.returncode == 0 else 'FAILED':6} {seconds:6.1f} s", flush=True)
    if ran.returncode:
        raise Failed(f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}")
    return ran.stdout


def wheel_check(python: str, folder: Path, pip_args: Sequence[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    empty = folder / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    wheels, binaries = folder / "wheels", folder / "venv" / "bin"
    if not (binaries / "python").exists():
        step("environment", [python, "-m", "venv", folder / "venv"], empty, environment)
    print(step("python", [binaries / "python", "--version"], empty, environment).strip())
    pip = [binaries / "python", "-m", "pip"]
    quiet = ["--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(prefix="chiasm-sources-") as sources:
        clone = copy_sources(Path(sources) / "chiasm")
        build = [*pip, "wheel", clone, "--no-deps", "-w", wheels, *quiet]
        step("wheel", build, empty, environment)
    (wheel,) = wheels.glob("chiasm-*.whl")
    install = [*pip, "install", *quiet, "-c", ROOT / "constraints.txt", *pip_args]
    step("install chiasm[cpu]", [*install, f"{wheel}[cpu]"], empty, environment)
    # A wheel of the same version would be left as it is.
    again = [*pip, "install", *quiet, "--force-reinstall", "--no-deps", wheel]
    step("install this wheel", again, empty, environment)
    step("pip check", [*pip, "check"], empty, environment)
    print(step("chiasm --version", [binaries / "chiasm", "--version"], empty, environment).strip())
    step("from chiasm import", [binaries / "python", "-c", FACE], empty, environment)
    demo = [binaries / "chiasm", "demo", "--samples", 200, "--to", "demo"]
    print(step("chiasm demo", demo, empty, environment).strip())
    for example in sorted((ROOT / "examples").glob("*.py")):
        step(f"examples/{example.name}", [binaries / "python", example], empty, environment)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="that makes the environment")
    parser.add_argument("--to", type=Path, help="keep environment and demo there")
    parser.add_argument("--pip-args", default="", help="passed to pip install")
    given = parser.parse_args()
    try:
        if given.to is not None:
            wheel_check(given.python, given.to.resolve(), shlex.split(given.pip_args))
        else:
            with tempfile.TemporaryDirectory(prefix="chiasm-wheel-") as folder:
                wheel_check(given.python, Path(folder), shlex.split(given.pip_args))
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
