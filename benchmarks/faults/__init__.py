"""The sections of the reliability page, a module and a function `section(scale)` each."""
