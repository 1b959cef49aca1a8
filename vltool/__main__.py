"""`python -m vltool`."""

from vltool.cli.app import main

if __name__ == "__main__":
    main()
