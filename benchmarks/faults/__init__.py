<<<<<<< HEAD
"""The sections of the reliability page, a module and a function `section(scale)` each."""
=======
"""What the reliability page measures: each module has a `section(scale)` that tries faults of one kind."""
>>>>>>> files
