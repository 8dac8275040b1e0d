"""A patch that can be entered several times, and is undone when the last entry is left."""

from abc import ABC, abstractmethod
from typing import TypeVar

Self = TypeVar("Self", bound="Entered")


class Entered(ABC):
    """Counts how often a patch has been entered and not yet left."""

    entries = 0

    @abstractmethod
    def undo(self) -> None:
        """Restore everything at once, however often the patch was entered. Further calls do nothing."""

    def leave(self) -> None:
        """Undo the patch if this was its last entry."""
        self.entries -= 1
        if self.entries <= 0:
            self.undo()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
