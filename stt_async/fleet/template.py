"""The template: its parameters, and what they may be, known before AWS is asked."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stt_async.errors import SettingsError

PATH = Path(__file__).parents[2] / "infra" / "cloudformation.yaml"

MAX_BYTES = 51_200
"""Of a template in a call; https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html"""


@dataclass(frozen=True, slots=True)
class Template:
    """A template's text, and the declarations of its parameters by their names."""

    body: str
    parameters: Mapping[str, Mapping[str, Any]]

    def check(self, given: Mapping[str, str]) -> None:
        """Hold values against their declarations.

        Raises:
            SettingsError: a name is not a parameter's, or a value not what it must be; it says which, and what.
        """
        problems = [said for name, value in given.items() if (said := self._problem(name, value)) is not None]
        if problems:
            raise SettingsError("\n".join(problems))

    def values(self, previous: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
        """Return the value of each parameter: given, else as it was, else its default.

        Raises:
            SettingsError: there is none.
        """
        defaults = {name: str(each["Default"]) for name, each in self.parameters.items() if "Default" in each}
        values = {**defaults, **previous, **given}
        for name, declared in self.parameters.items():
            if name not in values:
                raise SettingsError(f"{name} has no value: --set {name}=... ({declared.get('Description', name)})")
        return {name: values[name] for name in self.parameters}

    def _problem(self, name: str, value: str) -> str | None:
        if name not in self.parameters:
            near = difflib.get_close_matches(name, self.parameters, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(self.parameters))}"
            return f"{name} is no parameter of the template: {hint}"
        return refusal(name, self.parameters[name], value)


def read_template(file: Path) -> Template:
    """Read a template, in YAML or JSON.

    Raises:
        SettingsError: it is not there, is none, or is too long.
    """
    try:
        body = file.read_text()
        # Only this section is read as data: the rest holds tags that are CloudFormation's alone.
        declared = [
            value for key, value in yaml.compose(body, Loader=yaml.SafeLoader).value if key.value == "Parameters"
        ]
        parameters = yaml.safe_load(yaml.serialize(declared[0])) if declared else {}
    except OSError as error:
        raise SettingsError(f"cannot read the template {file}: {error.strerror}") from error
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise SettingsError(f"{file} is no CloudFormation template: {error}") from error
    size_bytes = len(body.encode())
    if size_bytes > MAX_BYTES:
        raise SettingsError(f"{file} has {size_bytes} bytes: CloudFormation takes {MAX_BYTES}")
    return Template(body, parameters)


def parse_parameters(words: Sequence[str]) -> dict[str, str]:
    """Parse `Name=Value` words.

    Raises:
        SettingsError: a word is none, or a name is given twice.
    """
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise SettingsError(f"--set {word}: give Name=Value, as --set SourceLinkMbps=100")
        if name in given:
            raise SettingsError(f"--set {name} is given twice")
        given[name] = value
    return given


def refusal(name: str, declared: Mapping[str, Any], value: str) -> str | None:
    """Return why CloudFormation would refuse a value, in the template's words; None, if it would not."""
    values = value.split(",") if declared["Type"] == "CommaDelimitedList" else [value]
    if all(_fits(declared, each) for each in values):
        return None
    allowed = ", ".join(str(each) for each in declared.get("AllowedValues", []))
    return f"{name} {declared.get('ConstraintDescription', f'must be one of {allowed}')} (it is {value!r})"


def _fits(declared: Mapping[str, Any], value: str) -> bool:
    allowed = [str(each) for each in declared.get("AllowedValues", [value])]
    if value not in allowed or re.search(declared.get("AllowedPattern", ""), value) is None:
        return False
    if declared["Type"] != "Number":
        return True
    try:
        number = float(value)
    except ValueError:
        return False
    return float(declared.get("MinValue", number)) <= number <= float(declared.get("MaxValue", number))
