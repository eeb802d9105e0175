"""SDMetrics' quality report in SDV's environment.

`python quality.py REAL SYNTHETIC` answers its overall score and properties as JSON.
"""

import json
import os
import sys
from importlib.metadata import version

import pandas as pd
from sdmetrics.reports import QualityReport

KINDS = {"M": "datetime", "O": "categorical"}


def main(real_path: str, synthetic_path: str) -> dict:
    real, synthetic = pd.read_parquet(real_path), pd.read_parquet(synthetic_path)
    columns = {name: {"sdtype": KINDS.get(real[name].dtype.kind, "numerical")} for name in real}
    report = QualityReport()
    metadata = {"tables": {"rows": {"columns": columns}}}
    report.generate({"rows": real}, {"rows": synthetic}, metadata, verbose=False)
    properties = report.get_properties().set_index("Property")["Score"].to_dict()
    return {"quality": report.get_score(), "properties": properties, "version": version("sdmetrics")}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(main(*sys.argv[1:])), file=answers, flush=True)
