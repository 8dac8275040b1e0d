"""The row kernel in C++: `rows.h` is what it offers, `library.py` loads it, `build.py` compiles it."""
