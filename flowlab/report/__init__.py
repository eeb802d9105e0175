"""Baselines to compare with, and pictures."""
