"""The same on a GPU, where there is one."""

import numpy as np
import pytest
import torch

import flowlab

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.mark.parametrize("name", ["planar", "sylvester", "glow", "maf", "iaf", "nsf", "circular_nsf"])
def test_presets_train_and_draw(name):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(500, 3, generator=generator)
    flow = getattr(flowlab.presets, name)(3, layers=2, hidden=(16,), generator=generator).to("cuda")
    weight = torch.rand(500, generator=generator)
    history = flowlab.fit(flow, x, sample_weight=weight, epochs=5, generator=generator, progress=False)
    assert np.isfinite(history.frame["validation"]).all()
    drawn = flow.sample((20,), generator=torch.Generator("cuda").manual_seed(0))
    assert drawn.device.type == "cuda"
    moved = flow.log_prob(drawn).cpu()
    assert torch.allclose(moved, flow.cpu().log_prob(drawn.cpu()), atol=1e-3)


def test_flow_density(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3)) @ rng.normal(size=(3, 3))
    model = flowlab.FlowDensity(device="cuda", effort="fast", random_state=0).fit(x, sample_weight=rng.random(2000))
    truth = flowlab.FlowDensity(effort="fast", random_state=0).fit(x, sample_weight=None)
    assert abs(model.score(x) - truth.score(x)) < 0.1
    assert np.isfinite(model.sample(100, random_state=0)).all()
    model.save(tmp_path / "m.flow")
    on_cpu, on_gpu = flowlab.load(tmp_path / "m.flow"), flowlab.load(tmp_path / "m.flow", device="cuda")
    assert np.allclose(on_cpu.score_samples(x), model.score_samples(x), atol=1e-6)
    assert np.allclose(on_gpu.score_samples(x), model.score_samples(x), atol=1e-9)
