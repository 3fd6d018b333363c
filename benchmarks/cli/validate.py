"""`purify validate`."""

from typing import Annotated

import typer

from benchmarks.cli.options import Overrides, complete_config
from benchmarks.cli.session import Result, Session, command


@command
def validate(
    session: Session,
    config: Annotated[
        str,
        typer.Argument(help="A YAML file, or the name of a packaged configuration.", autocompletion=complete_config),
    ],
    overrides: Overrides = None,
) -> Result:
    """Check a configuration of any command without running it: every problem at once.

    Data and weights need not be here. The code of plug-ins that it names is run. The exit code is 2 where it is wrong.
    """
    from benchmarks.config.sections import ConfigError
    from benchmarks.config.validation import check

    found = check(config, overrides)
    if found.problems:
        raise ConfigError(f"{config}, for `purify {found.command}`:\n" + "\n".join(found.problems))
    session.print(f"{config}: a configuration for `purify {found.command}`, nothing wrong with it")
    for text in found.missing:
        session.say(f"not here, and not checked: {text}")
    return {"config": config, "command": found.command, "missing": found.missing}
