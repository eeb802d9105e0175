"""What `benchmarks/synthesis.py` compares: the tables, the methods, how rows are scored and reported.

- `tables`: the six tables, prepared alike for everybody, and their splits.
- `worker.py`: one method in a process of its own, with the interpreter of its environment; it imports nothing from
   here.
- `quality.py`: SDMetrics' report, in SDV's environment.
- `scores`: flowlab's own metrics.
- `report`: tables, bars and picture.
"""

FLOWLAB, FAST, SNAPPED = "flowlab", "flowlab fast", "ARF snapped"
OURS = (FLOWLAB, FAST)
SDV = ("SDV copula", "CTGAN", "TVAE")
ARF = "ARF"
PEERS = (*SDV, ARF, SNAPPED)
METHODS = (*OURS, *PEERS)
REAL = "real rows"  # what real rows score: the noise floor
SPREAD = ("quality", "tstr")  # scores that vary most from draw to draw: means over all of them, with their spread
