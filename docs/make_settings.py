"""Writes docs/settings.md from the settings; a test compares the two."""

from pathlib import Path

from stt_async.settings import variables

HEAD = """# Settings

`docs/make_settings.py` makes this page from the settings, like the list in `bin/worker --help`.

Set environment variables, or write them into an env file (`--env-file`, `STT_ENV_FILE`). The environment takes
precedence over the file. Under systemd, pass secrets as credentials, so that no environment holds them:
`LoadCredential=stt_minio_secret_key:FILE`, named as the variable in lower case.

AWS credentials come from boto3's usual chain: `AWS_ACCESS_KEY_ID` and so on, a profile, the instance role.
`AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL_SQS` name endpoints other than AWS's own.
"""


def page() -> str:
    """Return the page."""
    return HEAD + "".join(
        f"\n## {heading}\n\n| variable | type | default | meaning |\n|---|---|---|---|\n"
        + "".join(
            f"| `{each.name}` | {each.type.replace('|', ' or ')} | {f'`{each.default}`' if each.default else ''} "
            f"| {each.description} |\n"
            for each in group
        )
        for heading, group in variables().items()
    )


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(page())
