"""Runs that are interrupted and go on start an engine once."""

import functools

import pytest

from reasoning_net.analysis import complexity, exits


@pytest.fixture
def one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (complexity, exits):
        monkeypatch.setattr(module, "VllmRollouts", functools.cache(module.VllmRollouts))
