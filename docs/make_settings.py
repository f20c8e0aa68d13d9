"""Write docs/settings.md from the settings themselves; a test holds it current."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

from pydantic_core import PydanticUndefined

from stt_async.params import SplitLimits, VadParams
from stt_async.settings import Settings, variable

HEAD = """# Settings

Environment variables, or lines of an env file (`--env-file`, `STT_ENV_FILE`); the environment wins over the file. Under
systemd also credentials (`LoadCredential=stt_minio_secret_key:FILE`; named as the variable, in lower case): the place
for secrets, which are in nobody's environment then.
AWS credentials come from the usual chain: instance role, profile, `AWS_ACCESS_KEY_ID` and so on. For endpoints other
than AWS's own: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL_SQS`.

This page is made by `docs/make_settings.py`.

| variable | default | what it is |
|---|---|---|
"""

GROUPS = {"vad": VadParams, "limits": SplitLimits}
"""Fields that are a group of settings each."""


def page() -> str:
    """Return the page."""
    return HEAD + "".join(f"| `{name}` | {default} | {what} |\n" for name, default, what in rows())


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield variable, default and meaning of each setting."""
    for name, field in Settings.model_fields.items():
        if group := GROUPS.get(name):
            told = attribute_docstrings(group)
            for part in fields(group):
                yield variable((name, part.name)), f"`{part.default}`", told[part.name]
        elif name == "aws_region":
            yield "AWS_REGION", f"`{field.default}`", field.description or ""
        else:
            yield variable((name,)), _default(field.default), field.description or ""


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Return the string below each attribute of a class: one line each, whatever its breaks in the source."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(cls)).body if isinstance(node, ast.ClassDef))
    return {
        attribute.target.id: inspect.cleandoc(told.value.value).replace("\n", " ")
        for attribute, told in pairwise(body)
        if isinstance(attribute, ast.AnnAssign)
        and isinstance(attribute.target, ast.Name)
        and isinstance(told, ast.Expr)
        and isinstance(told.value, ast.Constant)
        and isinstance(told.value.value, str)
    }


def _default(value: object) -> str:
    if value is None or value is PydanticUndefined or str(value) in {"", "()"}:
        return ""
    if isinstance(value, Path):
        return "`/var/tmp/stt-async-UID`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(page())
