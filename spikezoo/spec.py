"""The name of a pair of networks and its dataset: `gen:snn_back,T=8+disc:ann@cifar10`.

    spec    := part (("+" | white space) part)* ["@" dataset]      one gen, one disc
    part    := kind ":" name ("," key "=" value)*                  kind: gen | disc
    name    := a lower-case letter, then letters, digits, "_", and single "."
    key     := as name, capitals allowed                           "neuron.beta" reaches inside
    value   := a number, true, false, or a word

A spec is text in one canonical spelling: gen first, keys sorted, one spelling per number. Which
names and keys exist is not its business (`spikezoo.zoo.canonical` knows).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from spikezoo.errors import SpecError
from spikezoo.registry import NAME

DEFAULT_DATASET = "digits"
KINDS = ("gen", "disc")
MAX_LENGTH = 2000  # far above any real spec; bounds the work on a hostile one
NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE]-?[0-9]+)?")

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")
_VALUE = re.compile(r"[A-Za-z0-9_./:\-]+")
_SLUG_LENGTH = 80  # the Hub takes 96, of which the digits need 9
_EXAMPLE = "write it like 'gen:snn_middle,T=8+disc:snn@mnist'"


@dataclass(frozen=True)
class Part:
    """One network by name: `gen:snn_back,T=8`. Options are (key, canonical value text), sorted.

    Raises:
        SpecError: a kind, name, key or value that the grammar does not have.
    """

    kind: str
    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError(
                f"part kind '{_short(self.kind)}' is neither 'gen' nor 'disc'; {_EXAMPLE}"
            )
        _check_name(self.name, f"of a {self.kind}")
        pairs = tuple(sorted((_check_key(key), _spell(value)) for key, value in self.options))
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise SpecError(f"option '{key}' is given twice in '{self.kind}:{self.name}'")
        object.__setattr__(self, "options", pairs)

    @classmethod
    def parse(cls, text: str) -> Part:
        """Reads `kind:name,key=value,...`."""
        head, *rest = text.split(",")
        kind, colon, name = head.partition(":")
        if not colon:
            raise SpecError(f"'{_short(text)}' is no part: 'gen:NAME' or 'disc:NAME'; {_EXAMPLE}")
        options = []
        for pair in rest:
            key, equals, value = pair.partition("=")
            if not equals:
                raise SpecError(f"'{_short(pair)}' is no option: KEY=VALUE; {_EXAMPLE}")
            options.append((key, value))
        return cls(kind, name, tuple(options))

    def __str__(self) -> str:
        return ",".join([f"{self.kind}:{self.name}", *(f"{k}={v}" for k, v in self.options)])


@dataclass(frozen=True)
class Spec:
    """A generator, a discriminator and a dataset, by name. Equal specs have equal text."""

    gen: Part
    disc: Part
    dataset: str = DEFAULT_DATASET

    def __post_init__(self) -> None:
        _check_name(self.dataset, "of a dataset")
        for kind, part in zip(KINDS, (self.gen, self.disc), strict=True):
            if part.kind != kind:
                raise SpecError(f"'{part}' stands where a {kind} part is wanted; {_EXAMPLE}")
        _check_length(str(self))

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Reads a spec from text; `str` of the result parses to an equal spec.

        Raises:
            SpecError: the text is no spec; says what is wrong and how to write it.
        """
        _check_length(text)
        body, at, dataset = text.partition("@")
        if at and not dataset.strip():
            raise SpecError(f"no dataset behind '@'; {_EXAMPLE}")
        parts: dict[str, Part] = {}
        for word in re.split(r"\s*\+\s*|\s+", body.strip()):
            part = Part.parse(word)
            if part.kind in parts:
                raise SpecError(f"two {part.kind} parts: '{parts[part.kind]}' and '{part}'")
            parts[part.kind] = part
        for kind in KINDS:
            if kind not in parts:
                raise SpecError(f"no '{kind}:' part in '{_short(text)}'; {_EXAMPLE}")
        return cls(parts["gen"], parts["disc"], dataset.strip() if at else DEFAULT_DATASET)

    def __str__(self) -> str:
        return f"{self.gen}+{self.disc}@{self.dataset}"

    @property
    def slug(self) -> str:
        """A name for folders and Hub repos: `cifar10-snn_back-ann`, and 8 hex digits of the
        text's SHA-256 behind it where options are given or the Hub would refuse the plain name."""
        plain = f"{self.dataset}-{self.gen.name}-{self.disc.name}"
        options = self.gen.options or self.disc.options
        if not options and len(plain) <= _SLUG_LENGTH and not plain.endswith(".git"):
            return plain
        digits = hashlib.sha256(str(self).encode()).hexdigest()[:8]
        return f"{plain[:_SLUG_LENGTH].rstrip('-.')}-{digits}"

    def to_json(self) -> dict[str, object]:
        """The spec as it stands in config.json; `from_json` reads it back."""
        return {
            **{
                part.kind: {"name": part.name, "options": dict(part.options)}
                for part in (self.gen, self.disc)
            },
            "dataset": self.dataset,
        }

    @classmethod
    def from_json(cls, data: object) -> Spec:
        """Reads what `to_json` wrote.

        Raises:
            SpecError: the object has another form.
        """
        match data:
            case {
                "gen": {"name": str(gen), "options": dict(gen_options)},
                "disc": {"name": str(disc), "options": dict(disc_options)},
                "dataset": str(dataset),
            }:
                return cls(
                    Part("gen", gen, _pairs(gen_options)),
                    Part("disc", disc, _pairs(disc_options)),
                    dataset,
                )
        raise SpecError("a spec in JSON is {gen: {name, options}, disc: {name, options}, dataset}")


def _pairs(options: Mapping[object, object]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for key, value in options.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise SpecError(
                f"an option of a spec in JSON is text: text, given {type(key).__name__}: "
                f"{type(value).__name__}"
            )
        pairs.append((key, value))
    return tuple(pairs)


def _short(text: str) -> str:
    """The text, cut and on one line, for a message."""
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]


def _check_length(text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise SpecError(f"a spec has at most {MAX_LENGTH} characters, this has {len(text)}")


def _check_name(name: str, what: str) -> None:
    if not NAME.fullmatch(name):
        raise SpecError(
            f"'{_short(name)}' cannot be the name {what}: a lower-case letter, then lower-case "
            f"letters, digits, '_' and single '.'; {_EXAMPLE}"
        )


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise SpecError(f"'{_short(key)}' cannot be the name of an option; {_EXAMPLE}")
    return key


def _spell(value: str) -> str:
    """The one spelling of a value: .90 -> 0.9, 8.0 -> 8, 1E5 -> 100000, True -> true."""
    if not _VALUE.fullmatch(value):
        raise SpecError(
            f"'{_short(value)}' cannot be the value of an option: a number, true, false, or a "
            "word of letters, digits and '_ . / : -'"
        )
    if value.lower() in ("true", "false"):
        return value.lower()
    if not NUMBER.fullmatch(value):
        return value
    number = float(value)
    if abs(number) >= 2**53:  # from here on a float no longer tells whole numbers apart
        raise SpecError(f"'{_short(value)}' is too large a number; they are below 2^53")
    return str(int(number)) if number.is_integer() else repr(number)
