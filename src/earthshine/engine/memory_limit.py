"""Enforces the memory budget while the engine runs: expert slots are released before anything fails.

Invariant: a step begins, and a state is copied, only while the process holds no more than its budget. The plan stays
below the budget; this is for memory that no plan knows, such as that of the program that the engine runs in. Refuses
what does not fit even without slots.
"""

from collections.abc import Callable

from earthshine.errors import BudgetError
from earthshine.machine import memory_resident
from earthshine.units import format_bytes

WATCHED_ROWS = 32  # tokens of a step, from which on memory is checked after each layer: 20 us against milliseconds
NEAR_BYTES = 48 << 20  # below the limit: slots go before it is reached, so that a step has room to allocate


class MemoryLimit:
    """`shrink` returns that many bytes of expert slots to the system, and returns how many it freed."""

    def __init__(
        self,
        budget_bytes: int,
        shrink: Callable[[int], int],
        resident: Callable[[], int] = memory_resident,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.released_bytes = 0
        self._shrink, self._resident = shrink, resident

    def check(self) -> None:
        """Called before a step. Raises BudgetError where the process exceeds its budget and no slot is left."""
        held = self._after_shrinking(0)
        if held > self.budget_bytes:
            raise BudgetError(
                f"This process holds {format_bytes(held)}, more than its budget of {format_bytes(self.budget_bytes)}, "
                "and all expert slots are already freed; raise the memory budget, or free some of what the "
                "program holds."
            )

    def require(self, nbytes: int, what: str) -> None:
        """Called before `nbytes` are allocated for `what`. Raises BudgetError where they do not fit."""
        held = self._after_shrinking(nbytes)
        if held + nbytes > self.budget_bytes:
            raise BudgetError(
                f"{what} takes {format_bytes(nbytes)}, but of the budget of {format_bytes(self.budget_bytes)} only "
                f"{format_bytes(max(0, self.budget_bytes - held))} are left; raise the memory budget."
            )

    def _after_shrinking(self, nbytes: int) -> int:
        """Bytes that the process holds after slots were released, as far as `nbytes` more need their memory."""
        while (over := (held := self._resident()) + nbytes + NEAR_BYTES - self.budget_bytes) > 0:
            released = self._shrink(over)  # of what was never used nothing is held, so the process is asked again
            if released == 0:
                break
            self.released_bytes += released
        return held
