"""One run from its configuration to its report; the only package, with `config`, that takes a RunConfig."""
