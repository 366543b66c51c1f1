"""`python -m duplex VERB`."""

import sys

from duplex.cli import main

if __name__ == "__main__":
    sys.exit(main())
