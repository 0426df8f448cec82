import logging
import threading

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


def test_a_failure_leaves_no_handler():
    before = log.handlers[:]
    try:
        with collected():
            raise KeyError
    except KeyError:
        pass
    assert log.handlers == before and isinstance(log, logging.Logger)


def test_nothing_is_told_where_nobody_asked(caplog):
    caplog.set_level(logging.INFO, "cdiff_rt")
    with hushed():
        log.warning("within")
    log.info("after")
    assert caplog.messages == ["after"]
