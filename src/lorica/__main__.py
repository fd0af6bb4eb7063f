"""`python -m lorica`, the same as `lorica`."""

from lorica.cli import main

if __name__ == "__main__":
    main()
