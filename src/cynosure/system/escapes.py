"""Text from outside, made safe to show: what a terminal, a log or a reader could take for something else."""


def visible(text: str) -> str:
    """The text with every character that does not print written as an escape, line ends included.

    These are control characters (of which terminals make commands), the marks that reorder or hide text, spaces other
    than the plain one, and bytes of a file name that are not UTF-8. What is left is one line.

    >>> print(visible("\\x1b[2Jcat\\r\\n"), visible("\\u202eexe.txt"), visible("naïve 猫"))
    \\x1b[2Jcat\\r\\n \\u202eexe.txt naïve 猫
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(text: str) -> str:
    """The same in quotes.

    >>> print(quoted(" dog"), quoted("\\n"))
    " dog" "\\n"
    """
    return f'"{visible(text)}"'
