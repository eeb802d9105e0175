"""What `benchmarks/synthesis.py` and `benchmarks/literature.py` compare: tables, methods, scores, reports.

- `tables`: the six tables, prepared alike for everybody, and their splits.
- `worker.py`: one method in a process of its own, with the interpreter of its environment; it imports nothing from
   here but `cart`, which needs scikit-learn alone.
- `running`: starts workers, and keeps what they answer.
- `quality.py`: SDMetrics' report, in SDV's environment.
- `scores`: flowlab's own metrics; `boosting`: those of the literature, by XGBoost.
- `report`: tables, bars and picture of `synthesis.py`.
"""

FLOWLAB, FAST = "flowlab", "flowlab fast"
OURS = (FLOWLAB, FAST)
CART = ("CART 5", "CART 20")  # with leaves of so many rows
SDV = ("SDV copula", "CTGAN", "TVAE")
ARF = "ARF"
ARGN = ("ARGN", "ARGN unprotected")
UNMASKING = "Unmasking Trees"
SNAPPED = {"ARF snapped": ARF, "Unmasking Trees snapped": UNMASKING}  # rows of the latter, moved to values there are
PEERS = (*CART, *SDV, ARF, "ARF snapped", *ARGN, UNMASKING, "Unmasking Trees snapped")
METHODS = (*OURS, *PEERS)
REAL = "real rows"  # what real rows score: the noise floor
SPREAD = ("c2st", "pair_tv", "quality", "tstr", "dcr")  # means over all draws, with their spread
