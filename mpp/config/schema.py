"""How a config is read: typed sections (pydantic) <- a YAML file <- dotted `key=value` words.

All sections are frozen; an unknown key is refused with the nearest known one.  The knobs themselves stand with what they turn: see
config/pretrain.py, finetune.py and probe.py, a page for each program.
"""

import json
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator

from mpp.base.errors import ConfigError
from mpp.config.names import nearest
from mpp.remote.retries import hidden


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # `1e6` may stand for a count


Count = Annotated[int, BeforeValidator(_integral), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_integral), Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Above0 = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]
Pair = Annotated[tuple[float, float], Field(strict=False)]


FIXED = (
    "optim.name",
    "optim.ema",
    "optim.total_samples",
    "optim.epochs",
    "optim.steps",
)  # what the state holds; a length grows without more words


def may_change(key: str) -> bool:
    """Whether a resumed run may change it when asked to in so many words (resume_changes)."""
    return key.startswith("optim.") and key not in FIXED


def _changeable(keys: tuple[str, ...]) -> tuple[str, ...]:
    for key in keys:
        if not may_change(key):
            raise ValueError(
                f"{key} cannot be changed on resume: only keys of optim can, such as optim.base_lr, and not {', '.join(FIXED)}"
            )
    return keys


def _listed(value: Any) -> Any:
    return (
        tuple(filter(None, value.replace(" ", "").split(","))) if isinstance(value, str) else value
    )  # brackets mean something to some shells


_UNITS = {"s": 1, "min": 60, "h": 3600}


def seconds_of(duration: str) -> float:
    """Of "90s", "30min", "1.5h" or "1h30min".  Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(s|min|h)", duration)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not seconds or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} is no time; give one with its unit, such as 30min, 2h or 1h30min")
    return seconds


def _duration(value: Any) -> Any:
    if value is not None:
        seconds_of(str(value))
    return value


def _ranges(value: Any) -> Any:
    """ "24:48,96:108" -> ((24, 48), (96, 108))."""
    if not isinstance(value, str):
        return value
    parts = [re.fullmatch(r"(\d+):(\d+)", part.replace("_", "")) for part in value.replace(" ", "").split(",") if part]
    if not all(parts):
        raise ValueError(f"{value!r} must be positions of the run as a:b, or several as a:b,c:d, such as 831488:832512")
    return tuple((int(part[1]), int(part[2])) for part in parts if part)


def _ascending(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    for first, end in ranges:
        if not first < end:
            raise ValueError(f"{first}:{end} holds no position; give a:b with a below b")
    return tuple(sorted(ranges))


def _words(value: Any) -> Any:
    """One word, or a list of several."""
    several = list(value) if isinstance(value, list | tuple) else [value]
    if not several or not all(isinstance(word, str) and word for word in several):
        raise ValueError(f"{value!r} is neither a word nor a list of words, such as '[shards/photos/train, shards/scans/train]'")
    return several[0] if len(several) == 1 else tuple(several)


def listed(words: str | typing.Sequence[str]) -> list[str]:
    """Of what `Words` takes."""
    return [words] if isinstance(words, str) else list(words)


def as_given(words: str | typing.Sequence[str]) -> str:
    """As it is given on a command line, behind the equals sign."""
    return words if isinstance(words, str) else f"'[{', '.join(words)}]'"


Ranges = Annotated[
    tuple[Annotated[tuple[Count, Count], Field(strict=False)], ...],
    BeforeValidator(_ranges),
    Field(strict=False),
    AfterValidator(_ascending),
]
Duration = Annotated[str, BeforeValidator(_duration)]
Words = Annotated[str | tuple[str, ...], BeforeValidator(_words)]
Changes = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(strict=False), AfterValidator(_changeable)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, tree: Any) -> Any:
        """A section written as nothing (`model:` alone) means its defaults; one with several rows and no name means its default row."""
        if not isinstance(tree, dict):
            return tree
        out = {}
        for key, value in tree.items():
            default = cls.model_fields[key].default if key in cls.model_fields else None
            if value is None and isinstance(default, BaseModel):
                continue
            name = getattr(default, "name", None)
            if isinstance(value, dict) and "name" not in value and isinstance(name, str) and isinstance(default, BaseModel):
                value = {"name": name, **value}
            out[key] = value
        return out


def composed(name: str, base: type[Section], sections: typing.Mapping[str, type[Section]]) -> type[Section]:
    """`base`, and behind its keys a section under each further one, at its defaults."""
    return create_model(name, __base__=base, **{key: (section, section()) for key, section in sections.items()})  # type: ignore[call-overload]


class _Yaml(yaml.SafeLoader):
    """Scalars as YAML 1.2 has them: `3e-4` and `1e6` are numbers, `no` is a word, `1:30` is not 90; a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"a key must be a word, not a list or mapping (line {key.start_mark.line + 1})")
            if key.value in seen:
                raise ConfigError(f"key '{key.value}' stands twice (line {key.start_mark.line + 1}); keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in [
    ("bool", r"true|false|True|False", "tfTF"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?[0-9](_?[0-9])*", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9](_?[0-9])*(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
]:
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Yaml.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))
_Yaml.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value.replace("_", "")))


class Dumper(yaml.SafeDumper):
    """Quotes whatever either reading of YAML would take for something else than text."""


Dumper.yaml_implicit_resolvers = {
    first: _Yaml.yaml_implicit_resolvers.get(first, []) + yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])
    for first in {*_Yaml.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}

Schema = TypeVar("Schema", bound=Section)


def load(
    schema: type[Schema], path: str | Path | None, words: typing.Sequence[str] = (), below: typing.Mapping[str, Any] | None = None
) -> Schema:
    """The schema's defaults, overridden by `below`, by a YAML file, and by `a.b=value` words, each key by key.  Raises ConfigError."""
    return checked(schema, _over(below or {}, given(path, words)))


def given(path: str | Path | None, words: typing.Sequence[str] = ()) -> dict[str, Any]:
    """What a YAML file and the words over it name, as a tree that nothing has checked.  Raises ConfigError."""
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise ConfigError(
                f"cannot read the config {path}: {error.strerror}; give the path of a YAML file, such as configs/mpp_b16.yaml"
            ) from error
        tree = _parse(text, str(path)) or {}
        if not isinstance(tree, dict):
            raise ConfigError(f"{path} must hold sections with keys, not {type(tree).__name__}")
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            file = f"; a file of keys is given as --config {word}" if word.endswith((".yaml", ".yml")) else ""
            raise ConfigError(f"'{hidden(word)}' is not of the form key=value, such as seed=1{file}")
        branch = tree
        *sections, last = key.split(".")
        for section in sections:
            if not isinstance(branch.get(section), dict):
                branch[section] = {}
            branch = branch[section]
        branch[last] = text if text.startswith("pipe:") else _parse(text, f"'{hidden(word)}'")  # a command is no YAML
    return tree


def strange_keys(schema: type[BaseModel], tree: typing.Mapping[str, Any]) -> list[str]:
    """Those of a tree, by dotted name, that a schema does not know: by them configs of several programs are told apart."""
    known = set(known_keys(schema))
    return [key for key in flat(tree) if key not in known]


def checked(schema: type[Schema], tree: typing.Mapping[str, Any]) -> Schema:
    """Raises ConfigError for values that a section does not take."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(hidden(_one_line(error, schema))) from None


def _over(below: typing.Mapping[str, Any], above: typing.Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one; where both name a key, `above` has it."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def tree_of(keys: typing.Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": value} -> {"a": {"b": value}}."""
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *sections, last = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[last] = value
    return tree


def anew(
    schema: type[Schema], file: str | None, words: list[str], below: typing.Mapping[str, Any], above: typing.Mapping[str, Any] | None = None
) -> Schema:
    """As `load`, with these keys ("a.b") below the file and the words, and those above them."""
    return load(schema, file, [*words, *(f"{key}={json.dumps(value)}" for key, value in (above or {}).items())], tree_of(below))


def flat(tree: typing.Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections in sections -> values by dotted key: the way back of `tree_of`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, typing.Mapping) and value else {prefix + key: value}
    return found


def dump(config: Section) -> str:
    """The config as YAML that `load` reads back to an equal config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"{origin} is not YAML{where}: {getattr(error, 'problem', error)}") from None


def known_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        pending = [field.annotation]
        while pending:
            kind = pending.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += known_keys(kind, f"{prefix}{name}.")
            elif typing.get_origin(kind) in (typing.Union, types.UnionType, Annotated):
                pending += typing.get_args(kind)
    return sorted(set(keys))


def _one_line(error: ValidationError, schema: type[BaseModel]) -> str:
    problems = []
    for problem in error.errors():
        section, *rest = [str(part) for part in problem["loc"]] or [""]
        row = None  # of a union section: pydantic puts its name after the section's
        if rest and hasattr(schema.model_fields[section].default, "name") and rest[0] not in known_keys(schema):
            row = rest.pop(0) if len(rest) > 1 or problem["type"] == "value_error" else None
        kinds = ("constrained-", "function-", "literal[", "tuple[")
        key = ".".join([section, *(part for part in rest if part != "str" and not part.startswith(kinds))])
        if problem["type"] == "extra_forbidden" and key in known_keys(schema):
            problems.append(f"key '{key}' does not belong to {section}.name={row}")
        elif problem["type"] == "extra_forbidden":
            inside = problem["input"] if isinstance(problem["input"], dict) else {}
            asked = [f"{key}.{name}" for name in inside] or [key]  # of an unknown section, what was asked for in it
            problems += [f"unknown key '{name}'{nearest(name, known_keys(schema))}" for name in asked]
        elif problem["type"] == "value_error":
            problems.append((f"{key}: " if key else "") + str(problem["ctx"]["error"]))
        elif problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
            problems.append(f"{key}={problem['input']!r}: must be a section, such as '{key}={{...}}' with keys inside, or {key}.KEY=value")
        elif problem["type"] == "union_tag_invalid":
            problems.append(f"{key}.name={problem['ctx']['tag']} is not known; take one of {problem['ctx']['expected_tags']}")
        elif problem["type"] == "missing":
            problems.append(f"{key} is missing; the value given is {problem['input']!r}")
        else:
            problems.append(f"{key}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}")
    return "; ".join(dict.fromkeys(problems))
