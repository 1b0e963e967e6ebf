"""`python -m fastequi.cli`: the console script where it is not on the path, and under torchrun."""

from fastequi.cli.main import main

main()
