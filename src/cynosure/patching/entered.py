"""What is asked for several times, and undone when each of them is left."""

from abc import ABC, abstractmethod
from typing import TypeVar

Self = TypeVar("Self", bound="Entered")


class Entered(ABC):
    """A patch that counts how often it has been asked for, and not left."""

    entries = 0

    @abstractmethod
    def undo(self) -> None:
        """Leave everything as it was, whoever else has asked for the patch; once is enough."""

    def leave(self) -> None:
        """Undo it, unless it has been asked for more often than left."""
        self.entries -= 1
        if self.entries <= 0:
            self.undo()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
