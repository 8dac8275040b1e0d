"""The values of the options for reading texts, by option."""

CHAT = ("assistant", "all")  # the turns to predict
OVERLONG = ("cut", "drop", "error")  # what to do with a document longer than a row, if documents are kept whole
SPECIAL = ("text", "parse")  # how to read strings that are special tokens
