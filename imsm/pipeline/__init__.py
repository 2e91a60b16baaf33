"""One run from configuration to report; the only callers with a RunConfig."""
