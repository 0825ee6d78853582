"""``python -m scalarfl``."""

from scalarfl.cli import main

main()
