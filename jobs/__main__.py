"""`python -m jobs` is `chiasm`."""

from jobs.cli import main

if __name__ == "__main__":
    main()
