"""The CloudFormation template, and the validation of its parameters before the first call to AWS."""

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
"""Of a template sent in a call.

https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
"""


@dataclass(frozen=True, slots=True)
class Template:
    """The text of a template, and the declarations of its parameters by name."""

    body: str
    parameters: Mapping[str, Mapping[str, Any]]

    def check(self, given: Mapping[str, str]) -> None:
        """Check values against the declarations.

        Raises:
            SettingsError: parameters are unknown or values are not allowed; the message has a line for each.
        """
        problems = [problem for name, value in given.items() if (problem := self._problem(name, value)) is not None]
        if problems:
            raise SettingsError("\n".join(problems))

    def values(self, previous: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
        """Return a value for each parameter. Given ones take precedence over previous ones, then come the defaults.

        Raises:
            SettingsError: a parameter has no value.
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
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(self.parameters))}"
            return f"the template has no parameter {name}: {hint}"
        return refusal(name, self.parameters[name], value)


def read_template(file: Path) -> Template:
    """Read a template, in YAML or JSON.

    Raises:
        SettingsError: the file cannot be read, is not a template, or is too large.
    """
    try:
        body = file.read_text()
        # Only this section is parsed: the others have tags that only CloudFormation knows, such as !Ref.
        declared = [
            value for key, value in yaml.compose(body, Loader=yaml.SafeLoader).value if key.value == "Parameters"
        ]
        parameters = yaml.safe_load(yaml.serialize(declared[0])) if declared else {}
    except OSError as error:
        raise SettingsError(f"cannot read the template {file}: {error.strerror}") from error
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise SettingsError(f"{file} is not a CloudFormation template: {error}") from error
    size_bytes = len(body.encode())
    if size_bytes > MAX_BYTES:
        raise SettingsError(f"{file} has {size_bytes} bytes: CloudFormation accepts at most {MAX_BYTES}")
    return Template(body, parameters)


def parse_parameters(words: Sequence[str]) -> dict[str, str]:
    """Parse `Name=Value` words.

    Raises:
        SettingsError: a word has another form, or a name is given twice.
    """
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise SettingsError(f"--set {word}: give Name=Value, such as --set SourceLinkMbps=100")
        if name in given:
            raise SettingsError(f"--set {name} is given twice")
        given[name] = value
    return given


def refusal(name: str, declared: Mapping[str, Any], value: str) -> str | None:
    """Return why CloudFormation would reject a value, in the template's words, or None."""
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
