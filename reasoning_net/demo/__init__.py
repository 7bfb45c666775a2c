"""The embedded demo: a base made from nothing, its questions, and its bundle."""

from pathlib import Path

_WEIGHTS = Path(__file__).parent.resolve() / "weights"
DEMO_MODEL, DEMO_BUNDLE = _WEIGHTS / "base", _WEIGHTS / "bundle"
