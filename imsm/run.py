"""`python -m imsm.run ...`: the same as `imsm run ...`."""

import sys

from imsm.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    sys.exit(main())
