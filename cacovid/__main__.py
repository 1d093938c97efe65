"""`python -m cacovid`, the same as `cacovid`."""

import sys

from cacovid.cli import main

if __name__ == "__main__":
    sys.exit(main())
