"""MUVERA's fixed-dimensional encodings, against loops over tokens and against MaxSim."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.pipeline.encoders import Ragged
from chiasm.pipeline.encoders.muvera import Muvera

WIDTH = 8


def ragged(items):
    values = np.concatenate([np.zeros((0, WIDTH), np.float32), *items])
    return Ragged(values.astype(np.float32), np.array([len(one) for one in items], np.int64))


def drawn(rng, items, most=9):
    made = [rng.normal(size=(rng.integers(1, most + 1), WIDTH)) for _ in range(items)]
    return [one / np.linalg.norm(one, axis=1, keepdims=True) for one in made]


def max_sim(query, document):
    return sum(max(float(q @ x) for x in document) for q in query)


def by_hand(muvera, item, *, query):
    """The encoding of one item, token by token and partition by partition."""
    found = np.zeros(muvera._sketch.shape[0])
    place = 0
    for planes, project in zip(muvera._planes, muvera._project, strict=True):
        item = np.asarray(item, np.float32)
        signs = [tuple((x @ planes > 0).tolist()) for x in item]
        for number in range(muvera._count):
            wanted = tuple(bool(number >> bit & 1) for bit in range(planes.shape[1]))
            inside = [x for x, own in zip(item, signs, strict=True) if own == wanted]
            block = np.zeros(project.shape[1])
            if inside:
                block = sum(inside) @ project / (1 if query else len(inside))
            elif not query:
                far = [sum(a != b for a, b in zip(own, wanted, strict=True)) for own in signs]
                nearest = [n for n, hops in enumerate(far) if hops == min(far)]
                partition = [sum(bit << at for at, bit in enumerate(signs[n])) for n in nearest]
                block = item[nearest[partition.index(min(partition))]] @ project
            found[place : place + project.shape[1]] = block
            place += project.shape[1]
    return found @ muvera._sketch.toarray()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(0, 4), inner=st.integers(1, WIDTH))
def test_encodings_are_what_the_paper_says(seed, bits, inner):
    muvera = Muvera(WIDTH, 32, bits=bits, repetitions=3, inner=inner, seed=seed % 7)
    items = drawn(np.random.default_rng(seed), 3)
    for query, encode in ((False, muvera.raw_documents), (True, muvera.raw_queries)):
        expected = [by_hand(muvera, item, query=query) for item in items]
        np.testing.assert_allclose(encode(ragged(items)), expected, atol=1e-5)


def test_inner_products_estimate_max_sim():
    """Tokens that are near share a partition; with more of them, ever fewer others do. So of a
    query whose tokens are all near a document's, the estimate comes to MaxSim from below."""
    rng = np.random.default_rng(0)
    documents = drawn(rng, 30, most=12)
    near = [one + 0.02 * rng.normal(size=one.shape) for one in documents[:10]]
    queries = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in near]
    exact = np.array([[max_sim(q, d) for d in documents] for q in queries])
    own, shares = np.arange(len(queries)), []
    for bits in (2, 4, 6):
        muvera = Muvera(WIDTH, 1 << 16, bits=bits, repetitions=100, inner=WIDTH)
        found = muvera.raw_queries(ragged(queries)) @ muvera.raw_documents(ragged(documents)).T
        found /= 100
        assert (found.argmax(axis=1) == own).all()
        shares.append(float((found[own, own] / exact[own, own]).mean()))
    assert shares == sorted(shares) and 0.85 < shares[-1] < 1
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.9


def test_queries_are_sums_and_documents_means():
    muvera = Muvera(WIDTH, 64, bits=2, repetitions=4)
    (one, two) = drawn(np.random.default_rng(1), 2)
    both = muvera.raw_queries(ragged([np.concatenate([one, two])]))[0]
    np.testing.assert_allclose(both, muvera.raw_queries(ragged([one, two])).sum(0), atol=1e-5)
    twice = muvera.raw_documents(ragged([one, np.concatenate([one, one])]))
    np.testing.assert_allclose(twice[0], twice[1], atol=1e-5)


def test_rows_do_not_depend_on_their_neighbours_and_are_unit():
    muvera = Muvera(WIDTH, 64)
    items = drawn(np.random.default_rng(2), 20)
    together = muvera.documents(ragged(items))
    np.testing.assert_array_equal(np.linalg.norm(together, axis=1) > 0.999, True)
    alone = np.concatenate([muvera.documents(ragged([item])) for item in items])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("bits", [0, 3])
def test_an_item_without_tokens_has_no_vector(bits):
    muvera = Muvera(WIDTH, 16, bits=bits)
    items = [np.zeros((0, WIDTH)), *drawn(np.random.default_rng(3), 1), np.zeros((0, WIDTH))]
    found = muvera.documents(ragged(items))
    assert not found[[0, 2]].any() and found[1].any()
    assert not muvera.documents(ragged(items[:1])).any()
    assert muvera.queries(ragged([])).shape == (0, 16)


def test_the_random_numbers_never_change():
    """Vectors that are stored stay comparable: these numbers are of RandomState(0)."""
    found = Muvera(WIDTH, 4).documents(ragged([np.eye(WIDTH)[:3]]))[0]
    np.testing.assert_allclose(found, FIRST, atol=1e-6)


FIRST = [-0.2401922, -0.5604485, -0.5604485, 0.5604485]  # as of the first version
