import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.rng import CROP, DROP_PATH, INIT, MASK, OFFSET, PREP, PROBE, SHARDS, STREAM, Draws, below_of, seed_of

WORD = 2**64
numbers = st.integers(0, 2**63 - 1)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x64-10 as Salmon et al. 2011 write it down."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], WORD)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], WORD)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) % WORD, (k[1] + 0xBB67AE8584CAA73B) % WORD]
    return c


def test_the_reference_passes_the_published_known_answer():
    # Random123's kat_vectors, philox4x64 with 10 rounds, all zero.
    assert philox([0] * 4, [0] * 2) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


@given(numbers, st.integers(0, 8), st.lists(numbers, max_size=3))
def test_bits_are_the_blocks_of_philox_under_their_key(seed, use, key):
    counter = [*key, 0, 0, 0][:3]
    blocks = [philox([block, *counter], [seed, use]) for block in (1, 2)]  # numpy counts up before its first block
    assert Draws(seed, use, *key).bits(7).tolist() == (blocks[0] + blocks[1])[:7]


def test_bits_are_golden():
    assert Draws(0, 0).bits(4).tolist() == [0x2F4BA6408E4D89B, 0x3DD62B0B9CA8C5B2, 0x1C8667A55D902E79, 0x907D7A052FD5B4DC]
    assert Draws(7, MASK, 1, 2, 3).bits(2).tolist() == [0x66F6F654896C6C7A, 0x1D2041F2A7828928]
    assert Draws(2**63 - 1, CROP, 2**62, 5).bits(2).tolist() == [0xDFBB9D1A35E8D4BE, 0x58391366CD82EFCB]
    assert Draws(0, 0).bits(1).dtype == np.uint64


def test_our_use_of_the_bits_is_golden():
    assert Draws(7, MASK, 1, 2, 3).uniform(3).tolist() == [0.4022058445347497, 0.11377346204927552, 0.4874263034574827]
    assert below_of(Draws(7, MASK, 1, 2, 3).bits(12), 10).tolist() == [4, 1, 4, 3, 6, 8, 0, 1, 9, 3, 1, 5]
    assert Draws(7, MASK, 1, 2, 3).permutation(10).tolist() == [6, 1, 7, 3, 9, 0, 2, 4, 5, 8]
    assert seed_of(7, INIT, 1) == 1111343196547395040


def test_each_use_has_its_own_number():
    assert len({SHARDS, STREAM, OFFSET, CROP, MASK, INIT, PREP, PROBE, DROP_PATH}) == 9


@given(numbers, numbers, st.integers(0, 50), st.integers(0, 50))
def test_calls_take_the_bits_one_after_the_other(seed, sample, first, second):
    draws = Draws(seed, CROP, 0, sample)
    parts = [*draws.bits(first).tolist(), *draws.bits(second).tolist()]
    assert parts == Draws(seed, CROP, 0, sample).bits(first + second).tolist()


@pytest.mark.parametrize("place", range(5))
def test_every_part_of_the_key_counts(place):
    key = [3, MASK, 1, 2, 5]
    other = list(key)
    other[place] += 1
    assert not np.isin(Draws(*key).bits(64), Draws(*other).bits(64)).any()


@given(numbers, st.integers(1, 300))
def test_a_permutation_holds_every_index_once(seed, count):
    assert sorted(Draws(seed, SHARDS).permutation(count).tolist()) == list(range(count))


@given(numbers, st.integers(1, 2**32 - 1))
def test_below_is_the_integer_part_of_the_scaled_upper_half(seed, bound):
    bits = Draws(seed, PREP).bits(20).tolist()
    assert below_of(Draws(seed, PREP).bits(20), bound).tolist() == [(value >> 32) * bound >> 32 for value in bits]


@given(numbers)
def test_uniform_is_the_upper_53_bits(seed):
    bits = Draws(seed, PREP).bits(20).tolist()
    found = Draws(seed, PREP).uniform(20)
    assert found.tolist() == [(value >> 11) / 2**53 for value in bits]
    assert (found < 1).all()


def test_draws_are_uniform():
    uniform = Draws(1, PROBE).uniform(20_000)
    assert abs(np.histogram(uniform, 10, (0, 1))[0] - 2000).max() < 200  # 4.7 standard deviations
    assert abs(np.bincount(below_of(Draws(2, PROBE).bits(21_000), 7), minlength=7) - 3000).max() < 240


@given(numbers, st.integers(0, 8), numbers)
def test_a_seed_has_63_bits(seed, use, key):
    assert 0 <= seed_of(seed, use, key) < 2**63
    assert seed_of(seed, use, key) == Draws(seed, use, key).bits(1).tolist()[0] >> 1


def test_numpy_and_its_global_generator_are_left_alone():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    Draws(0, 0).permutation(100)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
