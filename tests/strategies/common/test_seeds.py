"""Seeds: equal for the same purpose, independent for any other."""

import hashlib

import pytest

from strategies.common.seeds import derive_seed

Labels = tuple[str | int, ...]


def test_a_seed_is_the_top_63_bits_of_the_digest_of_seed_and_labels() -> None:
    # Written out, because a release that changed it would change every run's results.
    digest = hashlib.sha256(b'[7, "site-a", 3]').hexdigest()
    assert derive_seed(7, "site-a", 3) == int(digest[:16], 16) // 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("site-0", 3), ("site-0", 4)),
        (("site-0", 3), ("site-1", 3)),
        (("site-0", 3), (3, "site-0")),
        (("site-0", 3), ("site-03",)),
        (("site-0", 3), ("site-0", "3")),
        (("site-0", 3), ("site-0",)),
        (("a", "b"), ("ab",)),
        (("a", ""), ("a",)),
        (("a", "b"), ("a\x1fstr:b",)),
    ],
)
def test_a_seed_depends_on_every_label_its_type_and_its_place(one: Labels, other: Labels) -> None:
    assert derive_seed(1, *one) != derive_seed(1, *other)


def test_no_two_streams_of_many_runs_rounds_and_sites_are_the_same() -> None:
    seeds = [
        derive_seed(seed, f"site-{site}", round_number)
        for seed in range(-5, 5)
        for site in range(10)
        for round_number in range(1, 11)
    ]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_streams_share_no_more_bits_than_chance() -> None:
    # 63 bits, each different with probability 1/2: 31.5 expected; over 200 pairs the mean has a
    # standard deviation of sqrt(63 / 4 / 200) = 0.28. The derivation is fixed, so is this.
    differing = [
        (derive_seed(1, "site-0", n) ^ derive_seed(1, "site-0", n + 1)).bit_count()
        for n in range(200)
    ]
    assert sum(differing) / 200 == pytest.approx(31.5, abs=1.2)
