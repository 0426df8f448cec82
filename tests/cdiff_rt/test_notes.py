import threading

import pytest

from cdiff_rt.notes import collected, hushed, log


def test_warnings_of_this_thread_and_block_are_collected():
    with collected() as lines:
        log.warning("one %s", "word")
        log.info("a note")
        other = threading.Thread(target=log.warning, args=("of another thread",))
        other.start()
        other.join()
    log.warning("after it")
    assert lines == ["one word"]


def test_a_failure_ends_the_block(caplog):
    with pytest.raises(KeyError), collected() as lines:
        log.warning("a")
        raise KeyError
    log.warning("a")
    assert lines == ["a"] and caplog.messages == ["a", "a"]


def test_nothing_is_said_twice_within_a_block_of_a_thread(caplog):
    caplog.set_level("INFO")
    with collected() as lines:
        for kind in (log.info, log.info, log.warning, log.warning):
            kind("%s", kind.__name__)
        thread = threading.Thread(target=log.info, args=["info"])
        thread.start()
        thread.join()
    assert caplog.messages == ["info", "warning", "info"] and lines == ["warning"]
    log.warning("warning")
    assert caplog.messages[3:] == ["warning"]


def test_a_block_within_another_collects_what_was_said_before_it(caplog):
    with collected() as outer:
        log.warning("a")
        with collected() as inner:
            log.warning("a")
            log.warning("b")
    assert (outer, inner, caplog.messages) == (["a", "b"], ["a", "b"], ["a", "b"])


def test_nothing_is_told_where_nobody_asked_but_by_other_threads(caplog):
    caplog.set_level("INFO", "cdiff_rt")
    with hushed():
        log.warning("within")
        thread = threading.Thread(target=log.info, args=["beside"])
        thread.start()
        thread.join()
    log.info("after")
    assert caplog.messages == ["beside", "after"]
