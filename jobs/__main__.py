"""`python -m jobs` is `chiasm`."""

from jobs.start import main

if __name__ == "__main__":
    main()
