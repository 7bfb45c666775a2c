import asyncio

import pytest

from server.http.admission import Admission
from server.http.errors import OverloadedError, UnavailableError


async def test_what_does_not_fit_is_refused_and_harms_nobody() -> None:
    admission = Admission(capacity=2, queue=2)
    with admission.admit(3):
        assert admission.load == 0.75
        with pytest.raises(OverloadedError) as full, admission.admit(2):
            pass
        assert full.value.headers["X-Reject-Reason"] == "queue_full"
        assert 1 <= int(full.value.headers["Retry-After"]) <= 60
        with admission.admit(1):
            assert admission.in_flight == 4
    assert admission.in_flight == 0


async def test_room_comes_back_after_an_error() -> None:
    admission = Admission(capacity=1, queue=0)
    with pytest.raises(RuntimeError), admission.admit(1):
        raise RuntimeError
    with admission.admit(1):
        pass


async def test_draining_lets_nobody_in_and_waits_for_the_last() -> None:
    admission = Admission(capacity=2, queue=0)
    with admission.admit(1):
        admission.is_draining = True
        with pytest.raises(UnavailableError), admission.admit(1):
            pass
        drained = asyncio.ensure_future(admission.drained())
        await asyncio.sleep(0)
        assert not drained.done()
    await asyncio.wait_for(drained, 1)


async def test_an_end_reaches_all_that_run() -> None:
    admission, error = Admission(capacity=2, queue=0), UnavailableError("It ends.", "draining", 1)
    with admission.admit(1) as first, admission.admit(1) as second:
        admission.end(error)
        assert first.result() is second.result() is error
    with admission.admit(1) as third:
        assert not third.done()
