"""`python -m server.cli`: for torchrun, and wherever the console script is not on the path."""

from server.cli import main

main()
