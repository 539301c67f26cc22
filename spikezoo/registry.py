"""Names to objects: built-in tables, decorators and entry points, all read lazily."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar, cast

from spikezoo.errors import DuplicateNameError, PluginError, UnknownNameError, unknown

log = logging.getLogger(__name__)
T = TypeVar("T")
NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


@dataclass(frozen=True)
class Entry:
    """Where one component lives (`module:attr`), what it is, and the distribution it comes from.

    `version` is that of a plugin's distribution; SpikeZoo's own components have none.
    """

    target: str
    summary: str
    distribution: str
    version: str = ""

    @property
    def source(self) -> str:
        """The distribution, and a plugin's version: `spikezoo-norse 1.0`."""
        return f"{self.distribution} {self.version}".rstrip()


class Registry(Generic[T]):
    """The components of one kind by name; nothing is imported before it is asked for.

    Three sources are looked through: the built-in table, what `register` added in this process,
    and the entry points of the group `spikezoo.<kind>`. A plugin never shadows or breaks a
    built-in: where both claim a name the built-in answers and `conflicts` names the two.
    """

    def __init__(self, kind: str, builtins: Mapping[str, tuple[str, str]]) -> None:
        self.kind = kind
        self._one = kind.removesuffix("es" if kind.endswith("sses") else "s")  # losses, generators
        self._builtins = {
            name: Entry(target, summary, "spikezoo-gan")
            for name, (target, summary) in builtins.items()
        }
        self._registered: dict[str, tuple[Entry, T]] = {}
        self._loaded: dict[str, T] = {}
        self._plugins: dict[str, list[Entry]] | None = None

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds a component for this process: notebooks and tests.

        Raises:
            DuplicateNameError: the name is taken already.
        """
        if not NAME.fullmatch(name):
            raise UnknownNameError(f"'{name}' is no name: lower-case letters, digits, '_' and '.'")

        def add(component: T) -> T:
            module = getattr(component, "__module__", "__main__")
            attr = getattr(component, "__qualname__", repr(component))
            new = Entry(f"{module}:{attr}", "registered in this process", f"module {module}")
            if name in self:
                raise self._duplicate(name, [self._entries(name)[0], new])
            self._registered[name] = (new, component)
            return component

        return add

    def unregister(self, name: str) -> None:
        """Takes back what `register` added."""
        self._registered.pop(name)

    def names(self, pattern: str = "*") -> list[str]:
        """The sorted names that match a shell pattern; imports no component."""
        known = {*self._builtins, *self._registered, *self._read_plugins()}
        return sorted(name for name in known if fnmatchcase(name, pattern))

    def __contains__(self, name: str) -> bool:
        return bool(self._entries(name))

    def entry(self, name: str) -> Entry:
        """What is known of a name without importing it.

        Raises:
            UnknownNameError: nothing of that name; says the nearest one.
            DuplicateNameError: two plugins claim it.
        """
        entries = self._entries(name)
        if not entries:
            raise unknown(self._one, name, self.names())
        if name not in self._builtins and (error := self.conflict(name)):
            raise error
        return entries[0]

    def source(self, name: str) -> str:
        """The distribution (name and version) that provides a component."""
        return self.entry(name).source

    def get(self, name: str) -> T:
        """The component itself, imported now.

        Raises:
            UnknownNameError, DuplicateNameError: as `entry`.
            PluginError: its module cannot be imported; names the distribution and the cause.
        """
        if name in self._registered:
            return self._registered[name][1]
        if name in self._loaded:  # layers ask for their backend at every call
            return self._loaded[name]
        entry = self.entry(name)
        module, _, attr = entry.target.partition(":")
        try:
            component: Any = importlib.import_module(module)
            for part in attr.split("."):
                component = getattr(component, part)
        # Whatever a plugin raises on import, `sys.exit()` included, is that plugin's fault.
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self._one} '{name}' of {entry.source} cannot be loaded from "
                f"'{entry.target}': {type(error).__name__}: {error}"
            ) from error
        self._loaded[name] = cast(T, component)
        return self._loaded[name]

    def entries(self, pattern: str = "*") -> dict[str, list[Entry]]:
        """Who claims each name that matches a shell pattern: the one that answers comes first."""
        return {name: self._entries(name) for name in self.names(pattern)}

    def conflicts(self) -> list[DuplicateNameError]:
        """One error for every name that more than one source claims."""
        return [error for name in self.names() if (error := self.conflict(name))]

    def conflict(self, name: str) -> DuplicateNameError | None:
        """The error for a name that more than one source claims; None for any other."""
        entries = self._entries(name)
        return self._duplicate(name, entries) if len(entries) > 1 else None

    def _entries(self, name: str) -> list[Entry]:
        builtin = [self._builtins[name]] if name in self._builtins else []
        registered = [self._registered[name][0]] if name in self._registered else []
        return [*builtin, *registered, *self._read_plugins().get(name, [])]

    def _read_plugins(self) -> dict[str, list[Entry]]:
        if self._plugins is None:
            self._plugins = {}
            for group, name, entry in installed():
                if group == f"spikezoo.{self.kind}":
                    self._plugins.setdefault(name, []).append(entry)
        return self._plugins

    def _duplicate(self, name: str, entries: list[Entry]) -> DuplicateNameError:
        claims = " and ".join(f"{entry.source} ({entry.target})" for entry in entries)
        return DuplicateNameError(
            f"{self._one} '{name}' is claimed by {claims}; rename or uninstall one of them"
        )


@functools.cache
def installed() -> list[tuple[str, str, Entry]]:
    """Group, name and entry of every installed entry point `spikezoo.*`; imports no plugin.

    What cannot be read is left out with a warning: one broken installation hides no other.
    """
    found: dict[str, list[tuple[str, str, Entry]]] = {}
    for dist in importlib.metadata.distributions():
        try:
            points = [p for p in dist.entry_points if p.group.startswith("spikezoo.")]
            if not points:
                continue
            name, version = dist.metadata["Name"], dist.metadata["Version"]
            if not (name and version):
                raise ValueError("its METADATA names no distribution and version")
            source = f"{name} {version}"
            # As an import does, the first of a name on sys.path hides the later ones.
            entries = found.setdefault(name, [])
            if entries:
                continue
            for point in points:
                if NAME.fullmatch(point.name):
                    entry = Entry(point.value, "", name, version)
                    entries.append((point.group, point.name, entry))
                else:
                    log.warning("entry point '%s' of %s is no name; left out", point.name, source)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with the files of others
            where = dist.locate_file("")
            log.warning("a distribution in %s has unreadable metadata: %r", where, error)
    return [point for entries in found.values() for point in entries]
