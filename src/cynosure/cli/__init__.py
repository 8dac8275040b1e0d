"""The command line: one thin module per command, each for one call of the library."""
