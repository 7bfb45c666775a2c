import math

import pytest

from server.top import Scrape, Window

HEADER = """# TYPE seconds histogram
seconds_bucket{{le="1.0",mode="latent"}} {0}
seconds_bucket{{le="2.0",mode="latent"}} {1}
seconds_bucket{{le="+Inf",mode="latent"}} {2}
"""


def window(before: tuple[int, int, int], after: tuple[int, int, int]) -> Window:
    return Window(Scrape.of(HEADER.format(*before)), Scrape.of(HEADER.format(*after)))


def test_a_quantile_is_of_what_happened_in_between() -> None:
    seen = window((100, 100, 100), (101, 104, 104))
    assert seen.quantile(0.25, "seconds", mode="latent") == pytest.approx(1.0)
    assert seen.quantile(0.625, "seconds", mode="latent") == pytest.approx(1.5)
    assert math.isnan(seen.quantile(0.5, "seconds", mode="explicit"))


def test_beyond_the_last_bound_is_the_last_bound() -> None:
    assert window((0, 0, 0), (0, 0, 5)).quantile(0.5, "seconds") == 2.0


def test_a_server_that_was_started_anew_gives_no_negative_figures() -> None:
    seen = window((9, 9, 9), (1, 1, 1))
    assert seen.grown("seconds_bucket", le="1.0") == 0
    assert math.isnan(seen.quantile(0.5, "seconds"))
