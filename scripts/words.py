"""Find words of the glossary's left column (CONTRIBUTING.md, "Words") in docs/, in the READMEs and in src/.

Code, links and generated pages are skipped. Of Python files the comments and the strings are read.
"""

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
GENERATED = {ROOT / "docs" / "reference" / name for name in ("cli.md", "models.md")}
READMES = [ROOT / folder / "README.md" for folder in ("", "benchmarks", "examples")]
EXAMPLE = re.compile(r"^ *>>> .*?(?=^\s*$|\Z)|^ {8,}\w+:|\{[^}]*\}", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", re.MULTILINE | re.DOTALL)


def glossary() -> dict[str, str]:
    """Return the replacement for each word or phrase."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| not | but |\n|---|---|\n")[2]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {phrase.lower(): better for left, better in rows for phrase in left.split(", ")}


def prose_of(source: str) -> str:
    """Return a Python source with everything blanked but its comments and strings, line for line.

    A string without a space is a name, which is not prose. Neither are the examples of a docstring, nor the
    names of its arguments.
    """
    lines = [""] * (source.count("\n") + 2)
    strings = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type in strings and " " in token.string):
            prose = EXAMPLE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), token.string)
            for i, line in enumerate(prose.split("\n")):
                lines[token.start[0] - 1 + i] += " " + line
    return "\n".join(lines)


def wrong_words(text: str, words: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """Yield (line, word, replacement) for each word of the glossary's left column in prose."""
    prose = CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)
    pattern = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in sorted(words, key=len, reverse=True))
    for match in re.finditer(rf"(?<!\w)({pattern})(?!\w)", prose, re.IGNORECASE):
        word = " ".join(match[0].split())
        yield prose.count("\n", 0, match.start()) + 1, word, words[word.lower()]


def main() -> int:
    """Print every place; return 1 if there are any."""
    words, places = glossary(), 0
    for path in sorted({*READMES, *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")} - GENERATED):
        text = path.read_text(encoding="utf-8")
        for line, word, better in wrong_words(prose_of(text) if path.suffix == ".py" else text, words):
            print(f"{path.relative_to(ROOT)}:{line}: {word!r}: write {better}")
            places += 1
    return int(places > 0)


if __name__ == "__main__":
    sys.exit(main())
