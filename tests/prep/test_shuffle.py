"""The shuffled order: a pure function of seed and names, in memory that does not grow with the list."""

import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.prep import shuffle
from mpp.prep.source import Item, Source


class Given(Source):
    """A source that lists what it is given."""

    path = Path("given")
    kind = "given"

    def __init__(self, items: Sequence[Item]):
        self.given = items

    def items(self, ignored: Counter) -> Iterator[Item]:
        yield from self.given


def order(items: Sequence[Item], folder: Path, seed: int = 0, split: str = "train") -> list[Item]:
    listed = shuffle.shuffle(Given(items), seed, folder, lambda: None)
    return shuffle.read_order(folder, split, 0, listed.counts[split])


def named(names: Sequence[str]) -> list[Item]:
    return [Item(name, len(name), (number, "x"), name[:1]) for number, name in enumerate(names)]


def test_the_order_for_a_seed_is_the_same_on_every_machine_and_in_every_version(tmp_path):
    items = named([f"{letter}.jpg" for letter in "abcdefgh"])
    assert "".join(item.name[0] for item in order(items, tmp_path)) == "gehacdbf"
    assert "".join(item.name[0] for item in order(items, tmp_path, seed=1)) == "hgcafbed"


@given(
    names=st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12), unique=True, min_size=1, max_size=60),
    seed=st.integers(0, 2**63 - 1), buffer=st.sampled_from([1, 500, 1 << 20]), buckets=st.sampled_from([1, 3, 1024]), chance=st.randoms(use_true_random=False),
)  # fmt: skip
def test_every_item_occurs_once_and_neither_the_order_of_listing_nor_the_buffer_matters(
    names, seed, buffer, buckets, chance, tmp_path_factory
):
    folder = tmp_path_factory.getbasetemp()
    items = named(names)
    expected = order(items, folder, seed)
    assert sorted(expected) == sorted(items)
    chance.shuffle(items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "BUFFER_BYTES", buffer)
        patch.setattr(shuffle, "BUCKETS", buckets)
        assert order(items, folder, seed) == expected
    first = chance.randrange(len(items))
    count = chance.randrange(len(items) - first) + 1
    assert shuffle.read_order(folder, "train", first, count) == expected[first : first + count]
    assert not list(folder.glob(".train-*"))


def test_any_stretch_can_be_read_without_the_rest(tmp_path):
    items = order(named([f"{number}.jpg" for number in range(1500)]), tmp_path)
    for first, count in ((0, 1), (255, 2), (256, 256), (257, 600), (1499, 1), (0, 1500)):
        assert shuffle.read_order(tmp_path, "train", first, count) == items[first : first + count]


def test_positions_are_uniform(tmp_path):
    """Where an item lands says nothing about its name: chi-square of 8 names over 8 positions, 160 seeds."""
    items = named([f"{number}.jpg" for number in range(8)])
    counts: Counter = Counter()
    for seed in range(160):
        counts.update((item.name, place) for place, item in enumerate(order(items, tmp_path, seed)))
    statistic = sum((counts[item.name, place] - 20) ** 2 / 20 for item in items for place in range(8))
    assert statistic < 49 + 4 * 10  # 49 degrees of freedom, deviation 10


def test_of_a_repeated_name_the_last_counts_and_splits_are_apart(tmp_path):
    items = [Item("a.jpg", 1, (0,)), Item("b.jpg", 2, (1,)), Item("a.jpg", 3, (2,)), Item("a.jpg", 4, (3,), split="test")]
    listed = shuffle.shuffle(Given(items), 0, tmp_path, lambda: None)
    assert listed.counts == {"train": 2, "test": 1}
    assert listed.ignored == {"(repeated names)": 1}
    assert sorted(item.size for item in shuffle.read_order(tmp_path, "train", 0, 2)) == [2, 3]


def test_the_stamp_changes_with_any_item_and_not_with_their_order():
    items = named(["a.jpg", "b.jpg", "c.jpg"])
    stamp = shuffle.survey(Given(items)).stamp
    assert shuffle.survey(Given(items[::-1])).stamp == stamp
    for change in ({"name": "d.jpg"}, {"size": 9}, {"place": (7,)}, {"label": "z"}, {"split": "val"}):
        assert shuffle.survey(Given([items[0]._replace(**change), *items[1:]])).stamp != stamp
    assert shuffle.survey(Given(items[1:])).stamp != stamp


def test_memory_does_not_grow_with_the_list(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "BUFFER_BYTES", 1 << 18)

    def peak(count: int) -> int:
        class Many(Given):
            def items(self, ignored: Counter) -> Iterator[Item]:
                return (Item(f"{number:09d}.jpg", number) for number in range(count))

        tracemalloc.start()
        try:
            shuffle.shuffle(Many(()), 0, tmp_path, lambda: None)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small = peak(8_000)
    assert peak(32_000) < 1.2 * small + 100_000
