"""Settings that all tests share."""

import os

# Tests run side by side, on small tensors: threads would only wait for one another. Set before
# torch is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

# A deadline per example measures how busy the machine is: the first example imports torch.
settings.register_profile("spikezoo", deadline=None)
settings.load_profile("spikezoo")
