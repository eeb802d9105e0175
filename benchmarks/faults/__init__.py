"""Sections of the reliability page: faults tried, and what became of them."""
