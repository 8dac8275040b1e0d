"""The row kernel in C++: `rows.h` declares its functions, `build.py` compiles it and `library.py` loads it."""
