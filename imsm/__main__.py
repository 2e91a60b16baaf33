"""`python -m imsm COMMAND ...`: the same as `imsm COMMAND ...`."""

import sys

from imsm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
