"""`python -m imsm.run ...`: the same as `imsm run ...`."""

from imsm.cli.run import main

if __name__ == "__main__":
    main()
