"""Settings that all tests share."""

from hypothesis import settings

# A deadline per example measures how busy the machine is: the first example imports torch.
settings.register_profile("spikezoo", deadline=None)
settings.load_profile("spikezoo")
