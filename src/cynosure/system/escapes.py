"""Escape untrusted text before it is shown in a terminal or a log."""


def visible(text: str) -> str:
    """Replace every unprintable character by an escape, line ends included.

    Unprintable are control characters, which terminals obey as commands; marks that reorder or hide text; spaces other
    than the plain one; and bytes of a file name that are not UTF-8. The result is one line.

    >>> print(visible("\\x1b[2Jcat\\r\\n"), visible("\\u202eexe.txt"), visible("naïve 猫"))
    \\x1b[2Jcat\\r\\n \\u202eexe.txt naïve 猫
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(text: str) -> str:
    """`visible` text in quotes.

    >>> print(quoted(" dog"), quoted("\\n"))
    " dog" "\\n"
    """
    return f'"{visible(text)}"'
