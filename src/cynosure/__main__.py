"""`python -m cynosure`."""

from cynosure.cli.entry import main

main()
