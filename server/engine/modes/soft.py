"""Thinking in mixtures of tokens (Soft Thinking, LEAD); shown is the largest part of each. Experimental."""

from server.engine.modes.explicit import Explicit


class Soft(Explicit):
    """As explicit; its chain's pass carries a `Mix`."""

    name = "soft"
    needs_mixtures = True
