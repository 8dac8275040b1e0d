"""Read JSON values one at a time: only one value and one chunk of the file are in memory."""

import json
import re
from collections.abc import Iterator
from typing import Any

CHUNK = 1 << 16  # characters
DECODER = json.JSONDecoder(parse_int=float)  # int() refuses more than 4,300 digits
SPACE = re.compile(r"[ \t\r\n]*")
OF_NUMBERS = re.compile(r"[-+.eE\d]*")
LONGEST_WORD = len("-Infinity")  # an error this close to the end of a chunk may be a value that the chunk cuts


def parse_json(text: str, place: str) -> Any:
    """Parse one JSON value. Raise ValueError, with the place, if it is not JSON."""
    try:
        return json.loads(text, parse_int=float)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {reason(error)} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError(f"{place} is JSON nested too deeply to be read") from error


def reason(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" starting at")


class Values:
    """The JSON values in a text that comes in chunks: one after another, or the elements of an array.

    >>> values = Values(iter(['[{"a": [1', '2]}, tr', 'ue] ']), "a.json")
    >>> values.next(), list(values.elements()), values.next()
    ('[', [({'a': [12.0]}, 1), (True, 1)], '')
    """

    def __init__(self, chunks: Iterator[str], name: str) -> None:
        self.chunks, self.name = chunks, name
        self.text, self.at = "", 0  # what is in memory, and how much of it has been read
        self.lines_before = 0

    def more(self) -> bool:
        """Read more chunks; return False at the end of the text.

        Read at least as much as is left in memory, so that a long value is not parsed too often.
        """
        least, chunks = max(CHUNK, len(self.text) - self.at), []
        for chunk in self.chunks:
            chunks.append(chunk)
            least -= len(chunk)
            if least <= 0:
                break
        if chunks:
            self.lines_before += self.text.count("\n", 0, self.at)
            self.text, self.at = self.text[self.at :] + "".join(chunks), 0
        return bool(chunks)

    def next(self) -> str:
        """Skip white space and return the next character without consuming it; empty at the end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def line(self, at: int | None = None) -> int:
        """Return the line number of a place in memory, by default of the next character."""
        return 1 + self.lines_before + self.text.count("\n", 0, self.at if at is None else at)

    def take(self) -> Any:
        """Read the next value. Raise ValueError if it is not JSON."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - LONGEST_WORD
                if not (cut and self.more()):
                    raise self.fault(reason(error), error.pos) from error
            except RecursionError as error:
                raise ValueError(f"{self.name} line {self.line()} is JSON nested too deeply to be read") from error
            else:
                after = OF_NUMBERS.match(self.text, end).end()  # type: ignore[union-attr]
                if after < len(self.text) or not self.more():  # a number may continue in the next chunk
                    self.at = end
                    return value

    def elements(self) -> Iterator[tuple[Any, int]]:
        """Yield the elements of the array that comes next, each with the number of the line where it begins."""
        self.at += 1
        if self.next() == "]":
            self.at += 1
            return
        while True:
            self.next()
            line = self.line()
            yield self.take(), line
            mark = self.next()
            if mark not in (",", "]"):
                raise self.fault("Expecting ',' delimiter", self.at)
            self.at += 1
            if mark == "]":
                return

    def skip_line(self) -> None:
        """Skip the rest of the line."""
        while (end := self.text.find("\n", self.at)) < 0:
            self.at = len(self.text)
            if not self.more():
                return
        self.at = end + 1

    def fault(self, why: str, at: int) -> ValueError:
        column = at - self.text.rfind("\n", 0, at)
        return ValueError(f"{self.name} line {self.line(at)} is not JSON: {why} at column {column}")
