"""The package as a whole: what importing it costs."""

import subprocess
import sys


def test_importing_flowlab_stays_light():
    code = (
        "import sys, flowlab\n"
        "heavy = {'matplotlib', 'pandas', 'typer', 'sklearn', 'pyarrow', 'scipy', 'rich'} & set(sys.modules)\n"
        "print(sorted(heavy)); flowlab.FlowDensity; assert 'sklearn' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_flowlab_changes_nothing_in_torch():
    code = (
        "import torch\n"
        "before = (torch.random.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),\n"
        "          torch.distributions.Distribution._validate_args)\n"
        "import flowlab, flowlab.demo\n"
        "after = (torch.random.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),\n"
        "         torch.distributions.Distribution._validate_args)\n"
        "assert before == after"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
