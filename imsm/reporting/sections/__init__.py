"""The parts of a report card after its scores, a file each: `part(evidence)` gives it, or None."""
