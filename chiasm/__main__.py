"""`python -m chiasm` is `chiasm`."""

from chiasm.jobs.cli.app import main

if __name__ == "__main__":
    main()
