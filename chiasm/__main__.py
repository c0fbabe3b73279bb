"""`python -m chiasm` is `chiasm`.

Python puts the current folder first on `sys.path` here. Unless chiasm itself lies there, it is
taken away again before anything is imported: a file such as safetensors.py or typing.py in it must
not stand before the library.
"""

import sys

if __name__ == "__main__":
    # Of a folder that is gone Python puts no path there; with -P none at all.
    here = sys.path[0] if sys.path and not sys.flags.safe_path else None
    if here is not None and __file__ != f"{here}/chiasm/__main__.py":
        del sys.path[0]

    from chiasm.jobs.cli.app import main

    main()
