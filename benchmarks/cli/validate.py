"""`purify validate`."""

from typing import Annotated

import typer

from benchmarks.cli.options import Overrides, say


def validate(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a packaged configuration.")],
    overrides: Overrides = None,
) -> None:
    """Check a configuration of any command without running it: every problem at once.

    Data and weights need not be here. The code of plug-ins that it names is run. The exit code is 2 where it is wrong.
    """
    from benchmarks.config.sections import ConfigError
    from benchmarks.config.validation import check

    found = check(config, overrides)
    if found.problems:
        raise ConfigError(f"{config}, for `purify {found.command}`:\n" + "\n".join(found.problems))
    print(f"{config}: a configuration for `purify {found.command}`, nothing wrong with it")
    for text in found.missing:
        say(f"not here, and not checked: {text}")
