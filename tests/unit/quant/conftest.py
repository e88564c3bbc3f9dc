"""What several tests of layers do."""

import threading

import pytest


@pytest.fixture
def four_at_once():
    """Calls something from four threads that start together; gives the four results."""

    def call(function):
        results, start = [], threading.Barrier(4)

        def work():
            start.wait()
            results.append(function())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        return results

    return call
