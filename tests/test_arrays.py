"""Bytes of `.npy` members: the array that was saved, or a reason, whatever the bytes are."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from chiasm.pipeline.arrays import ARRAY_REASONS, decode_array
from chiasm.pipeline.errors import Undecodable


def saved(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def with_header(header: str, numbers: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin-1")
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(width, "little") + text + numbers


def reason_of(data: bytes, **limits) -> str:
    with pytest.raises(Undecodable) as refused:
        decode_array(data, **limits)
    return refused.value.reason


numbers = st.sampled_from(["<f4", ">f8", "<i2", ">u4", "?", "<f2", "<c8", "|u1"])


@given(
    numbers.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0))),
    st.booleans(),
)
def test_an_array_comes_back_as_it_was_saved(array, fortran):
    if fortran:
        array = np.asfortranarray(array)
    found = decode_array(saved(array), kinds="biufc", finite=False)
    assert found.shape == array.shape and found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, array)
    assert found.dtype.isnative and found.flags.owndata
    found.fill(0)  # it may be written to


def test_an_array_without_numbers_comes_back():
    for shape in ((0,), (3, 0, 2)):
        assert decode_array(saved(np.zeros(shape, np.float32))).shape == shape


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_an_array"),
        (b"\x93NUMP", "not_an_array"),
        (b"no array at all", "not_an_array"),
        (b"\x93NUMPY", "truncated"),
        (saved(np.ones(3))[:40], "truncated"),
        (saved(np.ones(3))[:-1], "truncated"),
        (b"\x93NUMPY\x09\x00" + bytes(20), "corrupt"),
        (with_header("{'descr': '<f4'}"), "corrupt"),
        (with_header("("), "corrupt"),
        (with_header("{'descr': '<f4', 'fortran_order': 1, 'shape': (1,)}", bytes(4)), "corrupt"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "corrupt"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}"), "corrupt"),
        (with_header("{'descr': 'no', 'fortran_order': False, 'shape': (1,)}"), "corrupt"),
        (with_header("-" * 9_000), "corrupt"),
        (with_header("[" * 9_000), "corrupt"),
        (with_header(" " * 20_000), "corrupt"),
        (saved(np.array([{}], object), allow_pickle=True), "unsupported"),
        (saved(np.zeros(2, [("a", "<f4")])), "unsupported"),
        (saved(np.array(["words"])), "unsupported"),
        (saved(np.array([1, np.nan])), "not_finite_numbers"),
        (saved(np.array([np.inf], np.float32)), "not_finite_numbers"),
        (saved(np.zeros(2, np.complex64)), "wrong_shape"),
    ],
)
def test_what_is_no_array_of_numbers_has_a_reason(data, reason):
    assert reason_of(data) == reason


def test_shapes_and_sizes_are_those_that_the_encoder_takes():
    data = saved(np.ones((3, 4), np.float32))
    for shape in ((3, 4), (None, 4), (3, None), None):
        assert decode_array(data, shape=shape).shape == (3, 4)
    for shape in ((4, 3), (12,), (3, 4, 1), ()):
        assert reason_of(data, shape=shape) == "wrong_shape"
    assert reason_of(data, kinds="iu") == "wrong_shape"
    assert reason_of(data, max_numbers=11) == "too_many_numbers"
    assert decode_array(data, max_numbers=12).sum() == 12


@pytest.mark.parametrize("shape", ["(1 << 60,)", "(1152921504606846976,)", "(99999999, 99999999)"])
def test_a_header_that_claims_much_allocates_nothing(shape):
    data = with_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}", bytes(80))
    tracemalloc.start()
    try:
        assert reason_of(data, max_numbers=1 << 80) in ("truncated", "corrupt")
        assert reason_of(data) in ("too_many_numbers", "corrupt")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300), st.integers(0, 200), st.binary(max_size=4))
def test_any_bytes_give_an_array_or_a_reason(noise, at, change):
    whole = saved(np.arange(12, dtype=np.float32).reshape(3, 4))
    for data in (
        noise,
        b"\x93NUMPY\x01\x00" + noise,
        whole[:at] + change + whole[at + len(change) :],
    ):
        try:
            found = decode_array(data)
        except Undecodable as refused:
            assert refused.reason in ARRAY_REASONS
        else:
            assert found.dtype.kind in "biuf" and np.isfinite(found).all()
