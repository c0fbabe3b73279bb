"""`python -m chiasm` is `chiasm`; `main` is what both call.

Python puts the current folder first on `sys.path` here. Unless chiasm itself lies there, it is
taken away again before anything is imported: a file such as safetensors.py or typing.py in it must
not stand before the library.
"""

# What `signal` wraps, part of Python itself: no file can stand before it.
import _signal  # pyrefly: ignore  # typeshed does not have it
import sys


def main() -> None:
    """Run one command and exit. What it imports takes a third of a second, in which ctrl-C ends the
    process as it does any other program; the command then takes it over."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not where it is ignored
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from chiasm.jobs.cli.app import main as run

    run()


if __name__ == "__main__":
    # Of a folder that is gone Python puts no path there; with -P none at all.
    here = sys.path[0] if sys.path and not sys.flags.safe_path else None
    if here is not None and __file__ != f"{here}/chiasm/__main__.py":
        del sys.path[0]

    main()
