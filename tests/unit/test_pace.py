"""Long work says how far it is, now and then."""

import logging

from prefopt.process.pace import EVERY_S, Pace


def test_a_line_now_and_then_with_the_time_that_is_left(caplog):
    now = [0.0]
    with caplog.at_level(logging.INFO, logger="pace"):
        pace = Pace("answers", 100, logging.getLogger("pace"), clock=lambda: now[0])
        for _ in range(10):
            now[0] += EVERY_S / 2
            pace.advance(10)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "answers: 20/100, about 1:00 left"
    assert lines[-1] == "answers: 80/100, about 0:15 left"
    assert len(lines) == 4


def test_quick_work_says_nothing(caplog):
    with caplog.at_level(logging.INFO, logger="pace"):
        Pace("answers", 2, logging.getLogger("pace")).advance(1)
    assert not caplog.records
