"""`python -m eval` is `duplex eval`."""

import sys

from duplex.cli import run
from eval.cli import main

if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
