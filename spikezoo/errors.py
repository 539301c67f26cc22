"""The one error tree.

    SpikeZooError
    ├── UserError                a mistake that the user can mend        (exit status 2)
    │   ├── SpecError            a text that is no spec
    │   ├── UnknownNameError     a name or key that is not registered
    │   ├── OptionError          an option whose value cannot be used
    │   ├── DuplicateNameError   one name claimed by two sources
    │   └── DataError            a dataset that is missing or unreadable
    └── JobError                 work that was begun and failed          (exit status 1)
        ├── PluginError          a plugin that is missing or cannot be imported
        ├── CheckpointError      a run or model folder that cannot be used
        ├── HubError             the Hub refuses, or cannot be reached
        ├── TrainingError        a loss that is no longer finite
        └── ContractError        a component that breaks `spikezoo.testing`'s contract

Every message says what was given, what is possible and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpikeZooError(Exception):
    """Anything that SpikeZoo raises on purpose."""

    exit_code = 1


class UserError(SpikeZooError):
    """A mistake that the user can mend."""

    exit_code = 2


class SpecError(UserError):
    """A text that is no spec."""


class UnknownNameError(UserError):
    """A name or key that is not registered."""


class OptionError(UserError):
    """An option whose value cannot be used."""


class DuplicateNameError(UserError):
    """One name claimed by two sources."""


class DataError(UserError):
    """A dataset that is missing or unreadable."""


class JobError(SpikeZooError):
    """Work that was begun and failed."""


class PluginError(JobError):
    """A plugin that is missing or cannot be imported."""


class CheckpointError(JobError):
    """A run or model folder that cannot be used."""


class HubError(JobError):
    """The Hub refuses, or cannot be reached."""


class TrainingError(JobError):
    """A loss that is no longer finite."""


class ContractError(JobError, AssertionError):
    """A component that breaks the contract of `spikezoo.testing`."""


def unknown(what: str, given: str, possible: Iterable[str]) -> UnknownNameError:
    """An error that names what was given, the nearest right thing, and all that is possible.

    >>> str(unknown("generator", "snn_midle", ["ann", "snn_middle"]))
    "no generator 'snn_midle'; did you mean 'snn_middle'? There are: ann, snn_middle"
    """
    names = sorted(possible)
    # `neuron.beta` is also near to `bta`, and `T` to `t`.
    spellings = {name.lower().rpartition(".")[2]: name for name in names}
    spellings |= {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), spellings, n=1)
    hint = f"; did you mean '{spellings[near[0]]}'?" if near else "."
    return UnknownNameError(f"no {what} '{given}'{hint} There are: {', '.join(names) or 'none'}")
