"""``python -m torchstone``: the same as the command ``torchstone``."""

from torchstone.cli import main

if __name__ == "__main__":
    main()
