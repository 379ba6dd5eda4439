"""Settings that all tests share."""

from __future__ import annotations

import hypothesis
import torch

# Machines under load are slow at times; a time limit per example would make tests flaky.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

# A thread a worker: threads that share cores with other work run many times slower.
torch.set_num_threads(1)
