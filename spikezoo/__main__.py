"""`python -m spikezoo`, the same as the command `spikezoo`."""

from spikezoo.cli import main

main()
