"""What a rank finds out about the others at the place where they meet."""

from __future__ import annotations

import json

import pytest

from saeforest.ranks.monitor import Monitor, Over


class Store(dict[str, bytes]):
    """A store of which the first rank takes its leave at the worst moment."""

    leaves = False

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.leaves and key == "alive/0":
            self.set("ended", json.dumps({"message": "rank 2 of 3 ended", "code": 2}))
            self.set("alive/0", "left")
        return self[key]


def test_a_rank_that_leaves_has_said_why() -> None:
    """It ends all between two looks of another one, which must not take it that nothing was to be done: status 0."""
    store = Store({"alive/0": b"1", "alive/2": b"1"})
    monitor = Monitor(store, 1, 3)
    store.leaves = True
    monitor._exchange()
    with pytest.raises(Over) as over:
        monitor.wait_for(store, "told/1")
    assert over.value.code == 2
