"""`MixedFlow`: a density of numbers, levels and missing cells, with every conditional."""
