"""`python -m flowlab`."""

from flowlab.cli import main

main()
