"""The HTML report on a fitted model (write.py), its metrics, baselines and figures."""
