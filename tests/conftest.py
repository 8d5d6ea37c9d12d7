"""Every test runs on one thread, from one seed, and draws no windows."""

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    """Seed the global generator of torch, and give the default dtype back."""
    torch.manual_seed(0)
    yield 0
    assert torch.get_default_dtype() == torch.float32
