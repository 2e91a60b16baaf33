"""`imsm schema`: print the JSON schema of a run's configuration, for editors and programs that write one.

It describes the configuration in `result.json`. `imsm run --cfg job --resolve` prints one with the extra key `sweep`.
"""

import argparse

from imsm.cli.common import print_json


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return argparse.ArgumentParser(prog="imsm schema", description="Print the JSON schema of a run's configuration.")


def main(arguments: list[str]) -> None:
    """Print the schema."""
    parser().parse_args(arguments)
    from imsm.config.schema import RunConfig

    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()})
