import logging
import threading

from cdiff_rt.notes import collected, log


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
