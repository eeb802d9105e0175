"""What the reliability page measures: each module has a `section(scale)` that tries faults of one kind."""
