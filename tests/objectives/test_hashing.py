"""Counter-based random numbers: order, spread, and permutations checked by exhaustion."""

from __future__ import annotations

import numpy as np
import pytest

from deltalm_jax.objectives.hashing import hash_keys, mix, permute, random_words, string_key

MASK = 2**64 - 1


def splitmix64(x: int) -> int:
    """The published reference, in Python integers."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_mix_equals_splitmix64_and_its_published_first_outputs():
    words = [0, 1, 2**63, MASK, 123456789]
    assert mix(np.array(words, np.uint64)).tolist() == [splitmix64(w) for w in words]
    # The generator seeded with 0 first gives this well-known word.
    assert int(mix(np.uint64(0))) == 0xE220A8397B1DCDAF


def test_random_words_are_splitmix64s_sequence():
    """Against the generator as published, one word after the other; and no matter how many are asked for."""
    keys = np.array([0, 5, MASK], np.uint64)
    words = random_words(keys, 6)
    for key, row in zip(keys.tolist(), words.tolist(), strict=True):
        state, expected = key, []
        for _ in range(6):
            expected.append(splitmix64(state))
            state = (state + 0x9E3779B97F4A7C15) & MASK
        assert row == expected
    np.testing.assert_array_equal(random_words(keys, 3), words[:, :3])


def test_hash_keys_depends_on_every_part_and_on_order():
    keys = {int(hash_keys(*parts)) for parts in [(1, 2), (2, 1), (1,), (1, 2, 0), (0, 1, 2), (1, 3)]}
    assert len(keys) == 6


def test_hash_keys_broadcasts_elementwise():
    table = hash_keys(np.arange(3)[:, None], np.arange(4)[None, :])
    assert table.shape == (3, 4)
    assert all(table[i, j] == hash_keys(i, j) for i in range(3) for j in range(4))


def test_hash_keys_refuses_negative_numbers():
    with pytest.raises(ValueError, match="non-negative"):
        hash_keys(np.array([3, -1]))


def test_hash_bits_are_balanced_and_neighbours_differ_in_half_of_them():
    keys = hash_keys(7, np.arange(20_000))
    bits = (keys[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.02  # 5.6 standard deviations
    assert abs((bits[1:] ^ bits[:-1]).mean() - 0.5) < 0.005


def test_string_key_is_xxh3_of_utf8():
    assert string_key("é") == string_key("é".encode())
    assert string_key("a") != string_key("b")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_permute_is_a_bijection(size):
    assert sorted(permute(np.arange(size), size, 99).tolist()) == list(range(size))


def test_permute_takes_one_key_an_index():
    keys = np.array([5, 6, 5, 6], np.uint64)
    index = np.array([0, 0, 3, 3])
    together = permute(index, 10, keys)
    assert together.tolist() == [int(permute(np.array([i]), 10, int(k))[0]) for i, k in zip(index, keys, strict=True)]


def test_permute_takes_one_size_an_index():
    sizes = np.array([1, 2, 3, 10, 64, 65, 4097, 3_000_000_019])
    index, keys = sizes - 1, np.arange(8, dtype=np.uint64)
    together = permute(index, sizes, keys)
    alone = [int(permute(np.array([i]), int(n), int(k))[0]) for i, n, k in zip(index, sizes, keys, strict=True)]
    assert together.tolist() == alone
    with pytest.raises(ValueError, match=r"\[0, 3\), found 3"):
        permute(np.array([1, 3]), np.array([2, 3]), 0)


def test_permute_of_a_huge_range_stays_inside_and_distinct():
    size = 3_000_000_019
    out = permute(np.arange(5000) * 599_999, size, 1)
    assert out.min() >= 0
    assert out.max() < size
    assert len(set(out.tolist())) == 5000


def test_permute_refuses_indices_outside():
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        permute(np.array([5]), 5, 0)


def test_permute_is_close_to_uniform():
    """Where the first of 4 elements goes, over many keys: each place a quarter of the time."""
    places = permute(np.zeros(20_000, np.int64), 4, hash_keys(np.arange(20_000)))
    assert np.abs(np.bincount(places, minlength=4) / 20_000 - 0.25).max() < 0.02
