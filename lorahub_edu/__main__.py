"""`python -m lorahub_edu` is `lorahub-edu`."""

from lorahub_edu.cli.app import main

main()
