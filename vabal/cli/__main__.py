"""`python -m vabal.cli`: the command without its script."""

from vabal.cli.app import main

if __name__ == "__main__":
    main()
