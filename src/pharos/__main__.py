"""`python -m pharos` is the `pharos` command."""

from pharos.cli import main

main()
