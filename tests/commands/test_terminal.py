import logging

import pytest

from cdiff_rt.commands import terminal


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the terminal reads, set by the test."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_a_minute_says_how_far_it_is(clock, caplog):
    with caplog.at_level(logging.INFO, "cdiff_rt"), terminal.Progress(10, "weights") as progress:
        for second in (10, 59, 61, 100, 125):
            clock[0] = second
            progress()
    assert caplog.messages == ["weights: 3 of 10", "weights: 5 of 10"]


def test_what_is_quick_or_quiet_says_nothing(clock, caplog, capfd):
    with caplog.at_level(logging.INFO, "cdiff_rt"), terminal.Progress(3, "denoising") as progress:
        progress()
    with caplog.at_level(logging.WARNING, "cdiff_rt"), terminal.Progress(3, "weights") as progress:
        clock[0] = 1000.0
        progress()
    assert caplog.messages == [] and capfd.readouterr() == ("", "")
