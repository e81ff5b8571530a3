"""What a comparison hands on to all its trainings: `--settings name=value ...`."""

from collections.abc import Set

from common import cli
from common.cli import UserError


def check(config: cli.RunConfig, example: str, taken: Set[str]) -> None:
    """Raises UserError unless all `config.settings` are pairs name=value, as in `example`, and none
    has a name in `taken`, which the script gives its trainings itself."""
    pairs = f"pairs name=value, as in {example}"
    cli.check(config, "settings", pairs, lambda v: all(text.partition("=")[2] for text in v))
    names = {text.partition("=")[0].replace("-", "_") for text in config.settings}
    if names & taken:
        raise UserError(f"--settings {min(names & taken)}=...: this script sets it, see --help")
