"""The numbered places of a pool: a free list, and the number of holders of each place."""

import heapq
from collections import deque
from collections.abc import Callable, Sequence

from earthshine.errors import ContextError, UsageError


class Places:
    """Places 0 to `count` - 1, all free at first. `name`: what a place is called in messages.

    `holders_changed` is called with a place when `hold` or `release` has changed the number of its holders.
    """

    def __init__(self, count: int, name: str) -> None:
        self._name = name
        self.holders_changed: Callable[[int], object] | None = None
        self._free = list(range(count))  # a heap: the lowest first, so that a lone sequence's pages are consecutive
        self._holders = [0] * count
        self._lent, self._back = 0, deque[list[int]]()  # other threads append

    @property
    def free(self) -> int:
        return len(self._free)

    def holders(self, place: int) -> int:
        """The number of holders. A place with several holders is read-only."""
        return self._holders[place]

    def allocate(self, count: int) -> list[int]:
        """The `count` lowest free places, with one holder each. Raises ContextError; then none is taken."""
        if count > len(self._free):
            raise ContextError(f"The cache has {len(self._free)} {self._name}s free, but {count} are needed.")
        places = [heapq.heappop(self._free) for _ in range(count)]
        for place in places:
            self._holders[place] = 1
        return places

    def hold(self, places: Sequence[int]) -> None:
        """Add a holder to each of `places`, which must have one already."""
        self._require_held(places)
        for place in places:
            self._holders[place] += 1
            if self.holders_changed is not None:
                self.holders_changed(place)

    def release(self, places: Sequence[int]) -> None:
        """Remove a holder from each of `places`. Those left without one are free."""
        self._require_held(places)
        for place in places:
            self._holders[place] -= 1
            if self._holders[place] == 0:
                heapq.heappush(self._free, place)
            if self.holders_changed is not None:
                self.holders_changed(place)

    def lend(self, places: Sequence[int]) -> Callable[[], None]:
        """Hold `places` for another thread, which calls what is returned, once, when it no longer reads them."""
        lent = list(places)
        self.hold(lent)
        self._lent += len(lent)
        return lambda: self._back.append(lent)

    def take_back(self) -> None:
        """Release what other threads no longer read."""
        while self._back:
            places = self._back.popleft()
            self._lent -= len(places)
            self.release(places)

    @property
    def n_lent(self) -> int:
        """Places that are lent, each as often as it is."""
        return self._lent

    def _require_held(self, places: Sequence[int]) -> None:
        free = [place for place in places if self._holders[place] == 0]
        if free:
            raise UsageError(
                f"{self._name.capitalize()} {free[0]} has no holder; only {self._name}s that were allocated can be "
                "shared or released."
            )
