"""The command line: one thin module a verb, each the twin of one library call."""
