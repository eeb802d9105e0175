"""Benchmarks of flowlab, which its wheel does not hold: see README.md here."""
