"""`python -m server.cli`: for torchrun, and wherever the console script is not on the path."""

from server.cli import main

if __name__ == "__main__":  # a stage in a process of its own imports this, too
    main()
