"""Searches while another thread adds, deletes, updates, compacts and saves: every answer is valid."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.hybrid import HybridConfig, HybridIndex
from sparing.testing import make_clustered

SECONDS = 1.5


def run(*loops, seconds=SECONDS):
    """Each loop in a thread of its own until the time is over; the first failure is raised."""
    failures, stop = [], time.monotonic() + seconds

    def repeat(loop):
        try:
            count = 0
            while time.monotonic() < stop and not failures:
                loop(count)
                count += 1
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_searches_during_changes(tmp_path):
    data = make_clustered(1500, dim=32, vocabulary=1000, terms=20, topics=20, queries=20, seed=21)
    config = HybridConfig(scale=0.05)
    index = HybridIndex.build(data.dense[:1000], data.sparse[:1000], config=config)
    # Items 0-799 stay; 800-999 come and go as they are; an id never carries two different vectors here.
    truth = 0.5 * (data.dense_queries @ data.dense.T) + 0.5 * 0.05 * (data.sparse_queries @ data.sparse.T).toarray()
    best_stable = np.sort(truth[:, :800], axis=1)[:, -10]

    def check(found):
        for row, (ids, scores) in enumerate(zip(found.ids, found.scores, strict=True)):
            assert (ids >= 0).all()
            assert (ids < 1500).all()
            assert len(set(ids.tolist())) == len(ids)
            np.testing.assert_allclose(scores, truth[row, ids], rtol=1e-4, atol=1e-5)
            assert (np.diff(scores) <= 0).all()

    def search(count):
        check(index.search(data.dense_queries, data.sparse_queries, num_threads=1 + count % 2))

    def search_filtered(count):
        allowed = np.arange(count % 7, 800, 7)
        found = index.search(data.dense_queries, data.sparse_queries, filter=allowed)
        assert np.isin(found.ids, allowed).all()
        check(found)

    def search_exact(count):
        found = index.search_exact(data.dense_queries, data.sparse_queries)
        check(found)
        assert (found.scores[:, -1] >= best_stable - 1e-4).all()

    def change(count):
        new = np.arange(1000 + 50 * (count % 10), 1050 + 50 * (count % 10))
        index.add(data.dense[new], data.sparse[new], ids=new)
        index.delete(np.arange(800, 900))
        if count % 3 == 0:
            index.compact()
        index.add(data.dense[800:900], data.sparse[800:900], ids=np.arange(800, 900))
        index.delete(new)
        assert len(index) == 1000

    def save(count):
        path = tmp_path / "index"
        index.save(path)
        HybridIndex.verify(path)
        again = HybridIndex.open(path, mmap=count % 2 == 0)
        check(again.search(data.dense_queries, data.sparse_queries))
        assert 0 in again
        assert len(index.stats.to_dict()) > 5

    run(search, search, search_filtered, search_exact, change, save)
    assert len(index) == 1000


def test_an_update_is_seen_whole_or_not_at_all():
    rng = np.random.default_rng(22)
    dense = rng.standard_normal((2000, 8)).astype(np.float32)
    index = HybridIndex.build(dense, None)

    def search(count):
        found = index.search_exact(dense[0], k=2001, weights=(1, 0))
        ids = found.ids[found.ids >= 0]
        assert len(ids) == len(np.unique(ids)) == 2000

    def update(count):
        index.update(dense[:200], None, ids=np.arange(200))
        if count % 8 == 7:
            index.compact()

    run(search, search, search, update)


def test_an_added_item_is_known_to_filters_when_it_is_found():
    rng = np.random.default_rng(23)
    dense = rng.standard_normal((400, 8)).astype(np.float32)
    index = HybridIndex.build(dense, None)

    def search(count):
        everything = index.search_exact(dense[0], k=700, weights=(1, 0)).ids
        for item in everything[everything >= 1000][:3]:
            # Only one thread changes, and it never deletes: what was found once can be found again.
            assert int(item) in index
            assert index.search_exact(dense[0], k=1, filter=[item]).ids[0] == item

    def add(count):
        if count < 60:
            index.add(dense[:4], None, ids=1000 + 4 * count + np.arange(4))
        else:
            time.sleep(0.05)

    run(search, search, add, seconds=1.0)


def test_saving_a_tiny_index_while_it_grows(tmp_path):
    """Fewer items than entry points: the counts of a half-grown index must still fit each other."""
    rng = np.random.default_rng(24)
    dense = rng.standard_normal((3000, 8)).astype(np.float32)
    held = [HybridIndex.build(dense[:3], None)]

    def grow(count):
        index = HybridIndex.build(dense[:3], None)
        held[0] = index
        index.add(dense[3:1500], None, ids=np.arange(3, 1500))

    def save(count):
        held[0].save(tmp_path / "index")
        assert len(HybridIndex.open(tmp_path / "index")) in {3, 1500}

    run(grow, save, seconds=1.0)


def test_changes_from_two_threads_wait_for_each_other(small):
    index = HybridIndex.build(small.dense[:100], small.sparse[:100])

    def changing(start):
        def change(count):
            ids = np.arange(start, start + 20)
            index.add(small.dense[:20], small.sparse[:20], ids=ids)
            index.update(small.dense[20:40], small.sparse[20:40], ids=ids)
            index.delete(ids)
            index.compact()

        return change

    run(changing(1000), changing(2000), seconds=0.7)
    assert len(index) == 100
    index.compact()
    found = index.search_exact(small.dense[:20], small.sparse[:20], k=100)
    assert (np.sort(found.ids, axis=1) == np.arange(100)).all()


def test_two_threads_fill_an_empty_index():
    dense = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    index = HybridIndex.build(dense[:0], None)
    barrier = threading.Barrier(2)

    def fill(first):
        barrier.wait()
        index.add(dense[first : first + 200], None, ids=np.arange(first, first + 200))

    threads = [threading.Thread(target=fill, args=(first,)) for first in (0, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index) == 400
    assert index.search(dense, None, k=1).ids[:, 0].tolist() == list(range(400))


def test_waiting_for_a_change_holds_up_no_other_thread():
    dense = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
    index = HybridIndex.build(dense, None)
    queries = np.tile(dense, (8, 1))
    search = threading.Thread(target=lambda: index.search_exact(queries, None))
    change = threading.Thread(target=lambda: index.delete([5]))
    asked = threading.Thread(target=lambda: (len(index), 7 in index, index.stats))
    search.start()
    time.sleep(0.05)
    change.start()  # waits for the search
    time.sleep(0.05)
    asked.start()  # waits for the change
    beats = 0
    while search.is_alive():
        time.sleep(0.002)
        beats += 1
    for thread in (change, asked):
        thread.join()
    assert beats >= 10  # two at most while the interpreter was held
    assert len(index) == 2999
