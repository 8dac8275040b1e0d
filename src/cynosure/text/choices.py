"""How texts can be read: the values of the options, by the option's name."""

CHAT = ("assistant", "all")  # the turns that are predicted
OVERLONG = ("cut", "drop", "error")  # documents longer than a row, where documents are kept whole
SPECIAL = ("text", "parse")  # what strings that are special tokens become
