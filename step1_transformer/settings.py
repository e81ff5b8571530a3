"""What a comparison hands on to all its trainings: `--settings layer-decay=0.9 new-head`."""

import re
from collections.abc import Set

from common import cli
from common.cli import UserError


def check(config: cli.RunConfig, example: str, taken: Set[str]) -> None:
    """Raises UserError unless all `config.settings` are name=value or the name of a switch, as in
    `example`, and none has a name in `taken`, which the script gives its trainings itself."""
    flag = re.compile(r"[a-z][\w-]*(=.+)?")
    rule = f"flags without dashes, as in: {example}"
    cli.check(config, "settings", rule, lambda texts: all(map(flag.fullmatch, texts)))
    names = {text.partition("=")[0].replace("-", "_") for text in config.settings}
    if names & taken:
        raise UserError(f"--settings {min(names & taken)}: this script decides it, see --help")


def flags(config: cli.RunConfig) -> list[str]:
    """`config.settings` as a training's command has them, with dashes in their names."""
    pairs = (text.partition("=") for text in config.settings)
    return [f"--{name.replace('_', '-')}{sign}{value}" for name, sign, value in pairs]
