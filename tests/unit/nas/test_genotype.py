"""Genotypes: documents that come back as they were, and errors that say where."""

import json

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[nas]")

import numpy as np  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.errors import ArgumentError, ConfigError, FormatError, ShapeError, VersionError  # noqa: E402
from sparing.nas import Edge, Genotype, SearchSpace, load_genotype, save_genotype  # noqa: E402
from sparing.nas.genotype import SPACES  # noqa: E402

FIXTURE = load_genotype("w-ftt-net")
vectors = st.sampled_from(sorted(SPACES)).flatmap(
    lambda name: st.tuples(st.just(name), st.tuples(*(st.integers(0, n - 1) for n in SearchSpace(name).num_options)))
)


def changed(node, value):
    document = json.loads(FIXTURE.to_json())
    document["normal"][node] = value
    return json.dumps(document)


@given(vectors)
def test_documents_and_vectors_come_back(found):
    name, vector = found
    space = SearchSpace(name)
    genotype = space.decode(np.array(vector))
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert Genotype.model_validate(genotype.model_dump(mode="json")) == genotype
    assert space.decode(space.encode(genotype)) == genotype
    assert genotype.canonical() == genotype
    array = np.array(vector).reshape(2, 4, 2, 2)
    turned = space.canonical(array[:, :, ::-1])
    assert (turned == space.canonical(array)).all()
    named = np.array(vector).reshape(-1, 2)
    real = named[:, 1] != 0  # what does nothing does it from anywhere
    assert sorted(map(tuple, named[real])) == sorted(
        map(tuple, turned.reshape(-1, 2)[turned.reshape(-1, 2)[:, 1] != 0])
    )


def test_spaces_have_8_and_11_primitives():
    assert [len(SPACES[name]) for name in ("feature", "weight")] == [8, 11]
    assert SearchSpace("weight").num_options[:8] == (2, 11, 2, 11, 3, 11, 3, 11)


def test_the_published_genotype_is_the_papers():
    assert FIXTURE.normal[3] == (Edge(2, "max3"), Edge(1, "rcb5"))
    assert FIXTURE.reduce[2:] == ((Edge(1, "max3"), Edge(3, "conv1")), (Edge(4, "dil3"), Edge(2, "skip")))


def test_files(tmp_path):
    save_genotype(tmp_path / "g.json", FIXTURE)
    assert load_genotype(tmp_path / "g.json") == FIXTURE
    with pytest.raises(ArgumentError, match="w-ftt-net, or a JSON file, got 'nothing'"):
        load_genotype("nothing")
    (tmp_path / "g.json").write_text(FIXTURE.to_json().replace('"version": 1', '"version": 2'))
    with pytest.raises(VersionError, match=r"g\.json: a genotype in version 2"):
        load_genotype(tmp_path / "g.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(0, [[0, "sep7"], [0, "sep3"]]), "normal, node 2: expected a primitive of the weight space .*'sep7'"),
        (changed(1, [[3, "sep3"], [0, "sep3"]]), "normal, node 3: expected inputs from 0 to 2, got 3"),
        (changed(1, [[-1, "sep3"], [0, "sep3"]]), "normal, node 3: expected inputs from 0 to 2, got -1"),
        (changed(2, [[0, "sep3"]]), "normal, node 4: expected 2 inputs, got 1"),
        (changed(2, [[True, "sep3"], [0, "sep3"]]), r"normal\.2\.0\.0: .*integer, got True"),
        (FIXTURE.to_json().replace("weight", "feature"), "normal, node 2: .*feature space .*got 'rcb3'"),
        (FIXTURE.to_json().replace('"weight"', '"other"'), "space"),
        ("{", "not a genotype"),
    ],
)
def test_a_wrong_document_is_refused(data, message):
    with pytest.raises(FormatError, match=message):
        Genotype.from_json(data)


def test_wrong_fields_are_refused():
    with pytest.raises(ConfigError, match="normal: expected 4 inner nodes, got 3"):
        Genotype.build("weight", FIXTURE.normal[:3], FIXTURE.reduce)


def test_random_genotypes_follow_the_seed():
    space = SearchSpace("feature")
    assert space.random(3) == space.random(3)
    assert len({space.random(seed) for seed in range(20)}) == 20
    generator = np.random.default_rng(0)
    assert space.random(generator) != space.random(generator)


def test_neighbours_differ_in_one_choice_and_come_once():
    space = SearchSpace("feature")
    genotype = space.random(5)
    found = list(space.neighbours(genotype))
    assert len(set(found)) == len(found) > 100
    assert genotype not in found
    for other in found[::17]:
        pairs = [
            (a, b) for kind in ("normal", "reduce") for a, b in zip(genotype.cell(kind), other.cell(kind), strict=True)
        ]
        assert sum(set(a) != set(b) or a != b for a, b in pairs) == 1


def test_vectors_that_do_not_fit_are_refused():
    space = SearchSpace("feature")
    with pytest.raises(ShapeError, match=r"expected shape \(32,\)"):
        space.decode([0])
    with pytest.raises(ArgumentError, match="expected 0 to 7 at site 1, got 8"):
        space.decode([0, 8] + [0] * 30)
    with pytest.raises(ArgumentError, match="expected one of the feature space, got weight"):
        space.encode(FIXTURE)
