"""From a spec to networks: options from constructor signatures, then the constructors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from spikezoo.catalog import Component, registry
from spikezoo.errors import OptionError, PluginError, unknown
from spikezoo.spec import NUMBER, Part, Spec

if TYPE_CHECKING:
    from torch import nn

    from spikezoo.neurons import Neuron

Options = dict[str, Any]
REGISTRY_OF = {"gen": "generators", "disc": "discriminators"}


@dataclass(frozen=True)
class Pair:
    """A generator and its discriminator, with the canonical spec that names them."""

    generator: nn.Module
    discriminator: nn.Module
    spec: Spec


def create(
    spec: Spec | str, *, shape: tuple[int, int, int] | None = None, backend: str | None = None
) -> Pair:
    """The two networks that a spec names, freshly initialised from torch's random state.

    Args:
        spec: a `Spec` or its text.
        shape: of the images, (C, H, W); 32 x 32 in the dataset's colours by default.
        backend: who computes the spikes; `native` by default.

    Raises:
        SpecError, UnknownNameError, OptionError: the spec's text, names, keys or values.
    """
    spec = canonical(Spec.parse(spec) if isinstance(spec, str) else spec)
    if shape is None:
        shape = default_shape(spec.dataset)
    generator, discriminator = (
        build(part.kind, part.name, resolve(part), shape, backend) for part in (spec.gen, spec.disc)
    )
    return Pair(generator, discriminator, spec)


def default_shape(dataset: str, side: int = 32) -> tuple[int, int, int]:
    """(C, side, side) in a dataset's colours.

    Raises:
        OptionError: the dataset's colours are known only once its images are read.
    """
    channels = registry("datasets").get(dataset).channels
    if channels is None:
        raise OptionError(f"dataset '{dataset}' may be grey or colour; give shape=(C, H, W)")
    return (channels, side, side)


def build(
    kind: str, name: str, options: Options, shape: tuple[int, int, int], backend: str | None = None
) -> nn.Module:
    """One network from resolved options, as `resolve` gives them and config.json stores them.

    Raises:
        OptionError: an option is missing or left over, or the constructor refuses its value;
            names the part.
    """
    from spikezoo.backends import set_backend

    target = registry(REGISTRY_OF[kind]).get(name)
    network: nn.Module = _construct(
        f"{kind}:{name}", lambda: target(shape, **_nest(target, options))
    )
    set_backend(network, backend)
    return network


def neuron(name: str, *, backend: str = "native", **options: Any) -> Neuron:
    """A spiking layer: current [T, N, *] -> spikes [T, N, *].

    Raises:
        UnknownNameError: no such neuron, option or backend.
        OptionError: a value that cannot be used, or a backend without this neuron.
    """
    from spikezoo.backends import set_backend

    target = registry("neurons").get(name)
    for key in options:
        if key not in _signature(target):
            raise unknown(f"option of neuron '{name}'", key, _signature(target))
    layer: Neuron = _construct(f"neuron '{name}'", lambda: target(**options))
    # A library's own neuron has no native path: there the default is that library.
    set_backend(layer, None if backend == "native" and layer.only_backend else backend)
    return layer


def component(kind: str, text: str) -> tuple[Any, str]:
    """What `name,key=value` names in a registry, constructed, and its canonical text.

    Raises:
        UnknownNameError, OptionError: no such name or key, or a value that cannot be used.
    """
    name, *pairs = text.split(",")
    given = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise OptionError(f"options of '{name}' are written key=value, given '{pair}'")
        given[key] = value
    target = registry(kind).get(name)
    resolved, defaults = _resolve(target, given, name)
    made = _construct(text, lambda: target(**_nest(target, resolved)))
    kept = [f"{key}={_text(value)}" for key, value in resolved.items() if value != defaults[key]]
    return made, ",".join([name, *kept])


def resolve(part: Part) -> Options:
    """Every option of a part with its value, defaults included, nested ones as `neuron.beta`.

    Raises:
        UnknownNameError: no such network, neuron or key; says the nearest.
        OptionError: a value of another type.
    """
    return _resolve_part(part)[0]


def distributions(spec: Spec, **others: str | None) -> dict[str, str]:
    """Name and version of each plugin's distribution that a spec needs; of SpikeZoo's own, nothing.

    Args:
        spec: its networks, with all that their options name, and its dataset.
        others: further components by kind, as `losses="bce"`; None for none.

    Raises:
        UnknownNameError, OptionError: as `resolve`.
    """
    used = [("datasets", spec.dataset), *others.items()]
    for part in (spec.gen, spec.disc):
        kind = REGISTRY_OF[part.kind]
        options = _nest(registry(kind).get(part.name), resolve(part))
        used += _components(Component(kind, part.name, options))
    entries = [registry(kind).entry(name) for kind, name in used if name is not None]
    return {entry.distribution: entry.version for entry in entries if entry.version}


def _components(component: Component) -> Iterator[tuple[str, str]]:
    """Kind and name of a component and of all that its options name, inside one another."""
    yield component.kind, component.name
    for key, value in component.options.items():
        if isinstance(value, Component):
            yield from _components(value)
        elif key == "surrogate":  # a function, which has no options: its name is the whole choice
            yield "surrogates", value


def canonical(spec: Spec) -> Spec:
    """The spec with every key in its full spelling and every option at its default dropped.

    Raises:
        UnknownNameError, OptionError: as `resolve`, and an unknown dataset.
    """
    registry("datasets").entry(spec.dataset)
    return Spec(_canonical_part(spec.gen), _canonical_part(spec.disc), spec.dataset)


def part_of(kind: str, name: str, options: Options) -> Part:
    """The canonical part of a network's resolved options."""
    given = tuple((key, _text(value)) for key, value in options.items())
    return _canonical_part(Part(kind, name, given))


def _canonical_part(part: Part) -> Part:
    resolved, defaults = _resolve_part(part)
    kept = [(key, _text(value)) for key, value in resolved.items() if value != defaults[key]]
    return Part(part.kind, part.name, tuple(kept))


def _resolve_part(part: Part) -> tuple[Options, Options]:
    target = registry(REGISTRY_OF[part.kind]).get(part.name)
    given = _long_keys(target, dict(part.options), str(part))
    return _resolve(target, given, f"{part.kind}:{part.name}")


def _resolve(target: Any, given: Mapping[str, str], where: str) -> tuple[Options, Options]:
    """Every option with its value, and with the value it has where it is not given."""
    resolved: Options = {}
    defaults: Options = {}
    for key, parameter in _signature(target).items():
        default = parameter.default
        if not isinstance(default, Component):
            defaults[key] = default
            resolved[key] = _read(key, parameter, given[key]) if key in given else default
            continue
        name = given.get(key, default.name)
        inside, inside_defaults = _resolve(
            registry(default.kind).get(name), _inside(key, given), f"{where}, {key}={name}"
        )
        if name == default.name:
            inside_defaults |= default.options
            inside |= {k: v for k, v in default.options.items() if f"{key}.{k}" not in given}
        resolved |= {key: name} | {f"{key}.{k}": value for k, value in inside.items()}
        defaults |= {key: default.name}
        defaults |= {f"{key}.{k}": value for k, value in inside_defaults.items()}
    for key in given:
        if key not in resolved:
            raise unknown(f"option of {where}", key, resolved)
    return resolved, defaults


def _inside(key: str, options: Mapping[str, Any]) -> Options:
    """The options that reach inside `key`: of `neuron`, `neuron.beta` as `beta`."""
    start = f"{key}."
    return {k.removeprefix(start): v for k, v in options.items() if k.startswith(start)}


def _long_keys(target: Any, given: dict[str, str], where: str) -> dict[str, str]:
    """Spells `beta` as `neuron.beta` where the network itself has no option of that name."""
    default = _signature(target).get("neuron")
    if default is None or not isinstance(default.default, Component):
        return given
    name = given.get("neuron", default.default.name)
    inner = _signature(registry("neurons").get(name))
    long: dict[str, str] = {}
    for key, value in given.items():
        full = f"neuron.{key}" if key in inner and key not in _signature(target) else key
        if full in long:
            short = full.removeprefix("neuron.")
            raise OptionError(
                f"'{short}' and '{full}' in '{where}' are one option; give one of them"
            )
        long[full] = value
    return long


def _nest(target: Any, options: Options) -> Options:
    """The keyword arguments of a constructor: `neuron` and `neuron.*` become one Component."""
    arguments: Options = {}
    rest = dict(options)
    for key, parameter in _signature(target).items():
        if key not in rest:
            raise OptionError(f"option {key} of {target.__name__} is missing")
        arguments[key] = _checked(key, parameter, rest.pop(key))
        if isinstance(parameter.default, Component):
            kind, name = parameter.default.kind, str(arguments[key])
            inside = _inside(key, rest)
            rest = {k: v for k, v in rest.items() if not k.startswith(f"{key}.")}
            arguments[key] = Component(kind, name, _nest(registry(kind).get(name), inside))
    if rest:
        raise OptionError(f"{target.__name__} has no option {', '.join(rest)}")
    return arguments


def _checked(key: str, parameter: inspect.Parameter, value: Any) -> Any:
    """A value from config.json, which may say anything, if it is of the parameter's type."""
    kind = str if isinstance(parameter.default, Component) else parameter.annotation
    if get_origin(kind) is Literal:
        fits = value in get_args(kind)
    elif kind in (int, float):
        allowed = int if kind is int else (int, float)
        fits = isinstance(value, allowed) and not isinstance(value, bool) and abs(value) < 1e300
    else:
        fits = not isinstance(kind, type) or isinstance(value, kind)
    if not fits:
        wanted = getattr(kind, "__name__", str(kind))
        raise OptionError(f"option {key} is of type {wanted}, given {value!r:.80}")
    return value


def _construct(where: str, make: Callable[[], Any]) -> Any:
    """What a constructor makes; what it refuses becomes an OptionError that says where."""
    try:
        return make()
    except (OptionError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"{where}: {error}") from error


def _signature(target: Any) -> dict[str, inspect.Parameter]:
    """The options of a class: its constructor's keyword-only parameters.

    Raises:
        PluginError: its annotations cannot be evaluated, or an option has no default.
    """
    try:
        parameters = inspect.signature(target, eval_str=True).parameters
    except Exception as error:  # evaluating annotations runs the plugin's own code
        raise PluginError(f"the options of {target} cannot be read: {error!r}") from error
    options = {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name, parameter in options.items():
        if parameter.default is parameter.empty:
            raise PluginError(f"option {name} of {target} has no default; every option needs one")
    return options


def _read(key: str, parameter: inspect.Parameter, text: str) -> Any:
    """The value of an option from its canonical text, by the parameter's type."""
    kind = parameter.annotation
    if kind is str:
        return text
    if get_origin(kind) is Literal or kind is bool:
        choices = {_text(choice): choice for choice in get_args(kind) or (True, False)}
        if text not in choices:
            raise OptionError(f"option {key} is one of {', '.join(choices)}, given '{text}'")
        return choices[text]
    if kind not in (int, float):
        raise OptionError(f"option {key} has the type {kind}, which a spec cannot give")
    # Python's own constructors also take '1_000', 'nan' and 'inf'.
    if not NUMBER.fullmatch(text) or (kind is int and not float(text).is_integer()):
        wanted = "a whole number" if kind is int else "a number"
        raise OptionError(f"option {key} is {wanted}, given '{text}'")
    return kind(float(text))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
