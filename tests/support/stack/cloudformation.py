"""Resolves infra/cloudformation.yaml with given parameters, as CloudFormation does, for tests and the simulation."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cfnlint.decode import cfn_yaml

from stt_async.fleet.template import PATH, refusal

PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::StackName": "stt-async",
    "AWS::URLSuffix": "amazonaws.com",
}

_NO_VALUE = {"Ref": "AWS::NoValue"}


@dataclass(frozen=True)
class Stack:
    """The resolved template, with the resources whose conditions hold."""

    parameters: Mapping[str, Any]
    conditions: Mapping[str, bool]
    resources: Mapping[str, dict[str, Any]]
    outputs: Mapping[str, Any]

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the properties of each resource of a type, by logical id."""
        return {name: each.get("Properties", {}) for name, each in self.resources.items() if each["Type"] == kind}

    def properties(self, name: str) -> dict[str, Any]:
        properties: dict[str, Any] = self.resources[name].get("Properties", {})
        return properties


def load() -> dict[str, Any]:
    """Read the template, with intrinsic functions in the long form."""
    template: dict[str, Any] = json.loads(json.dumps(cfn_yaml.load(str(PATH))))
    return template


def resolve(template: dict[str, Any], given: Mapping[str, str]) -> Stack:
    """Resolve parameters, conditions and functions. A reference to a resource becomes `<Name>` or `<Name.Attribute>`.

    Raises:
        KeyError: a parameter has neither a value nor a default, or a reference names nothing that exists.
    """
    parameters = _parameters(template, given)
    resolver = _Resolver(template, parameters)
    conditions = {name: resolver.condition(name) for name in template["Conditions"]}
    resources = {
        name: resolver.value({key: part for key, part in each.items() if key != "Condition"})
        for name, each in template["Resources"].items()
        if conditions.get(each.get("Condition"), True)
    }
    return Stack(parameters, conditions, resources, resolver.value(template["Outputs"]))


def refusals(template: dict[str, Any], given: Mapping[str, str]) -> list[str]:
    """Return the reasons for which CloudFormation would reject these parameters, in the template's words."""
    reasons = [each for name, value in given.items() if (each := refusal(name, template["Parameters"][name], value))]
    resolver = _Resolver(template, _parameters(template, given))
    rules = [assertion for rule in template.get("Rules", {}).values() for assertion in rule["Assertions"]]
    return reasons + [rule["AssertDescription"] for rule in rules if not resolver.truth(rule["Assert"])]


def _parameters(template: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    parameters = {name: given.get(name, each.get("Default")) for name, each in template["Parameters"].items()}
    missing = sorted(name for name, value in parameters.items() if value is None)
    if missing:
        raise KeyError(f"no value for {', '.join(missing)}")
    for name, each in template["Parameters"].items():
        if each["Type"] == "CommaDelimitedList":
            parameters[name] = parameters[name].split(",")
    return parameters


class _Resolver:
    def __init__(self, template: dict[str, Any], parameters: Mapping[str, Any]) -> None:
        self._template = template
        self._parameters = parameters

    def condition(self, name: str) -> bool:
        return self.truth(self._template["Conditions"][name])

    def truth(self, expression: dict[str, Any]) -> bool:
        ((function, of),) = expression.items()
        match function:
            case "Condition":
                return self.condition(of)
            case "Fn::Equals":
                return bool(self.value(of[0]) == self.value(of[1]))
            case "Fn::EachMemberEquals":
                return all(member == self.value(of[1]) for member in self.value(of[0]))
            case "Fn::Not":
                return not self.truth(of[0])
            case "Fn::And":
                return all(self.truth(each) for each in of)
            case "Fn::Or":
                return any(self.truth(each) for each in of)
        raise KeyError(f"unknown condition function {function}")

    def value(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.value(each) for each in node if self._exists(each)]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((function, of),) = node.items()
            if function == "Ref" or function.startswith("Fn::"):
                return self._function(function, of)
        return {key: self.value(each) for key, each in node.items() if self._exists(each)}

    def _exists(self, node: Any) -> bool:
        if isinstance(node, dict) and "Fn::If" in node:
            return self._exists(self._branch(node["Fn::If"]))
        return bool(node != _NO_VALUE)

    def _branch(self, of: list[Any]) -> Any:
        condition, then, otherwise = of
        return then if self.condition(condition) else otherwise

    def _function(self, function: str, of: Any) -> Any:
        functions: dict[str, Callable[[], Any]] = {
            "Ref": lambda: self._reference(of),
            "Fn::GetAtt": lambda: self._reference(".".join(of)),
            "Fn::Sub": lambda: re.sub(r"\$\{([^!}]+)\}", lambda name: str(self._reference(name[1])), of),
            "Fn::If": lambda: self.value(self._branch(of)),
            "Fn::FindInMap": lambda: self._mapped(*self.value(of)),
            "Fn::GetAZs": lambda: [PSEUDO["AWS::Region"] + zone for zone in "ab"],
            "Fn::Base64": lambda: self.value(of),
        }
        return functions[function]()

    def _mapped(self, name: str, first: str, second: str) -> Any:
        return self._template["Mappings"][name][first][second]

    def _reference(self, name: str) -> Any:
        if name in PSEUDO:
            return PSEUDO[name]
        if name in self._parameters:
            return self._parameters[name]
        if name.split(".", maxsplit=1)[0] not in self._template["Resources"]:
            raise KeyError(f"unknown reference {name}")
        return f"<{name}>"
