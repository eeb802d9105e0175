"""Densities of numbers, levels and missing cells with every conditional: networks, trees, and both."""
