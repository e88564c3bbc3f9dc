"""The published suite on every kind of HybridIndex."""

import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.hybrid import HybridConfig, HybridIndex
from sparing.testing import HybridIndexContract


class TestDefault(HybridIndexContract):
    def build(self, dense, sparse, *, ids):
        return HybridIndex.build(dense, sparse, ids=ids)


class TestNaive(HybridIndexContract):
    def build(self, dense, sparse, *, ids):
        return HybridIndex.build(dense, sparse, ids=ids, config=HybridConfig.naive())


class TestTwoStageInt8(HybridIndexContract):
    min_recall = 0.9  # a dense-only start costs recall where the sparse part dominates

    def build(self, dense, sparse, *, ids):
        return HybridIndex.build(dense, sparse, ids=ids, config=HybridConfig(two_stage=True, dense_code="int8", seed=5))


class TestReopened(HybridIndexContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.path = tmp_path / "index.sparing"

    def build(self, dense, sparse, *, ids):
        HybridIndex.build(dense, sparse, ids=ids).save(self.path)
        return HybridIndex.open(self.path)
