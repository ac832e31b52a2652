"""Random numbers that are a function of their key, the same on every machine and library version.

Raw Philox-4x64 bits (Salmon et al. 2011, as numpy implements the counter) and our own use of them: library sampling routines (`shuffle`,
`choice`, ...) change between versions, raw bits do not.  Golden values: tests/base/test_rng.py.
"""

import threading

import numpy as np

# What a key is used for: two uses of one (seed, epoch, sample, view) never share bits.
SHARDS, STREAM, OFFSET, CROP, MASK, INIT, PREP, PROBE, DROP_PATH, RAND_AUGMENT, ERASE, MIX, CODEBOOK, SOURCES = range(14)


WORDS = 4  # 64-bit words a block
STRETCH = 1 << 18  # keys that are looked at together: 2 MB


class _Generator(threading.local):
    """One of numpy's generators a thread, set to a key whenever bits are taken: making one for each key would take three times as long."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(0)


_generator = _Generator()
_EMPTY = np.zeros(WORDS, dtype=np.uint64)


class Draws:
    """The bits that belong to one key; each call takes the next ones."""

    def __init__(self, seed: int, use: int, *key: int):
        """seed: any integer from 0 to 2**63-1; use: one of the constants above; key: up to three further non-negative integers."""
        self._key = np.array([seed, use], dtype=np.uint64)
        self._counter = np.array([0, *key, 0, 0, 0][:WORDS], dtype=np.uint64)
        self._taken = 0  # words

    def bits(self, count: int) -> np.ndarray:
        """uint64 [count]."""
        block, ahead = divmod(self._taken, WORDS)
        self._counter[0] = block
        philox = _generator.philox
        philox.state = {
            "bit_generator": "Philox",
            "state": {"counter": self._counter, "key": self._key},
            "buffer": _EMPTY,
            "buffer_pos": WORDS,  # nothing left in it
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._taken += count
        return philox.random_raw(ahead + count)[ahead:]

    def uniform(self, count: int) -> np.ndarray:
        """float64 [count] in [0, 1)."""
        return uniform_of(self.bits(count))

    def permutation(self, count: int) -> np.ndarray:
        """int64 [count]: a permutation of range(count)."""
        return permutation_of(self.bits(count))

    def first_of_permutation(self, total: int, count: int) -> np.ndarray:
        """int64 [count], ascending: which the first `count` of `permutation(total)` are, in memory for `count` and a stretch, not for `total`."""
        found, lowest = np.empty(0, np.int64), np.empty(0, np.uint64)
        for first in range(0, total, STRETCH):
            keys = self.bits(min(STRETCH, total - first))
            few = (
                np.flatnonzero(keys < lowest[-1]) if len(lowest) == count and count else np.arange(len(keys))
            )  # of equal keys the first stays
            found, lowest = np.concatenate([found, first + few]), np.concatenate([lowest, keys[few]])
            order = permutation_of(lowest)[:count]
            found, lowest = found[order], lowest[order]
        return np.sort(found)


def uniform_of(bits: np.ndarray) -> np.ndarray:
    """uint64 -> float64 in [0, 1): the upper 53 bits."""
    return (bits >> np.uint64(11)) * 2.0**-53


def below_of(bits: np.ndarray, bound: int) -> np.ndarray:
    """uint64 -> int64 in [0, bound), bound < 2**32: multiply-shift of the upper 32 bits (bias below bound / 2**32)."""
    return ((bits >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)


def permutation_of(bits: np.ndarray) -> np.ndarray:
    """uint64 [..., n] -> int64 [..., n]: permutations of range(n), by sorting random 64-bit keys (ties, if ever, by index)."""
    return np.argsort(bits, axis=-1, kind="stable")


def seed_of(seed: int, use: int, *key: int) -> int:
    """One 63-bit seed for a library's own generator, a function of the key."""
    return int(Draws(seed, use, *key).bits(1)[0] >> np.uint64(1))
