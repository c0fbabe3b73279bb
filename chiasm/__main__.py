"""`python -m chiasm` is `chiasm`.

Python puts the current folder first on `sys.path` here. Unless chiasm itself lies there, it is
taken away again: a file such as safetensors.py in it must not stand before the library.
"""

import sys
from pathlib import Path

import chiasm

if __name__ == "__main__":
    here = Path.cwd()
    if Path(sys.path[0]) == here != Path(str(chiasm.__file__)).parent.parent:
        del sys.path[0]

    from chiasm.jobs.cli.app import main

    main()
