"""The installed plugins: what each adds, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from spikezoo.catalog import REGISTRIES, registry
from spikezoo.errors import SpikeZooError
from spikezoo.registry import installed


@dataclass(frozen=True)
class Plugin:
    """An installed distribution with entry points `spikezoo.*`.

    `components` maps what it adds, as `neurons:stochastic`, to the reason why that cannot be
    used, or to None where it can.
    """

    distribution: str
    version: str
    components: dict[str, str | None]


def plugins() -> list[Plugin]:
    """The installed plugins by name, each of their components imported to see whether it loads."""
    found: dict[tuple[str, str], dict[str, str | None]] = {}
    for group, name, entry in installed():
        kind = group.removeprefix("spikezoo.")
        components = found.setdefault((entry.distribution, entry.version), {})
        components[f"{kind}:{name}"] = _fault(kind, name)
    return [Plugin(*key, components) for key, components in sorted(found.items())]


def report() -> str:
    """The installed plugins as text: a line for each distribution and for each component."""
    lines = []
    for plugin in plugins():
        lines.append(f"{plugin.distribution} {plugin.version}")
        width = max(map(len, plugin.components))
        for component, fault in sorted(plugin.components.items()):
            lines.append(f"  {component:{width}}  {'loads' if fault is None else fault}")
    return "\n".join(lines) or f"no plugins: no entry points spikezoo.{{{','.join(REGISTRIES)}}}"


def _fault(kind: str, name: str) -> str | None:
    try:
        if conflict := registry(kind).conflict(name):
            return str(conflict)
        registry(kind).get(name)
    except SpikeZooError as error:
        return " ".join(str(error).split())  # the messages of others may have many lines
    return None
