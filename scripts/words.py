"""Find words of the glossary's left column (CONTRIBUTING.md, "Words") in docs/ and in the READMEs.

Code, links and generated pages are skipped.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
GENERATED = {ROOT / "docs" / "reference" / name for name in ("cli.md", "models.md")}
READMES = [ROOT / folder / "README.md" for folder in ("", "benchmarks", "examples")]
CODE = re.compile(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", re.MULTILINE | re.DOTALL)


def glossary() -> dict[str, str]:
    """Return the replacement for each word or phrase."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| not | but |\n|---|---|\n")[2]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {phrase.lower(): better for left, better in rows for phrase in left.split(", ")}


def wrong_words(text: str, words: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """Yield (line, word, replacement) for each word of the glossary's left column in a Markdown text."""
    prose = CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)
    pattern = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in sorted(words, key=len, reverse=True))
    for match in re.finditer(rf"(?<!\w)({pattern})(?!\w)", prose, re.IGNORECASE):
        word = " ".join(match[0].split())
        yield prose.count("\n", 0, match.start()) + 1, word, words[word.lower()]


def main() -> int:
    """Print every place; return 1 if there are any."""
    words, places = glossary(), 0
    for path in sorted({*READMES, *(ROOT / "docs").rglob("*.md")} - GENERATED):
        for line, word, better in wrong_words(path.read_text(encoding="utf-8"), words):
            print(f"{path.relative_to(ROOT)}:{line}: {word!r}: write {better}")
            places += 1
    return int(places > 0)


if __name__ == "__main__":
    sys.exit(main())
