"""`python -m fastequi`: the console script where it is not on the path."""

from fastequi.cli.main import main

main()
