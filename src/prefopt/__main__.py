"""`python -m prefopt <command> ...` is `prefopt <command> ...`, where the console script is not on the path."""

from prefopt.cli import main

main()
