"""One session of the command line: what is said where, how it ends, and the options that every command takes.

A command is a function of a session and of its own arguments; what it returns is what `--json` prints:

    @command
    def speed(session: Session, batch: int = 64) -> Result:
        session.say("a line beside the results")
        session.show(table)
        return result
"""

import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.cli.machine_readable import as_line
from benchmarks.cli.options import flag

if TYPE_CHECKING:
    from rich.console import RenderableType

Result = object
"""What a command found, for `--json`: see `benchmarks.cli.machine_readable`. None where there is nothing to tell."""

DONE, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

EXIT_CODES = (
    "Exit codes: 0 done; 1 a check failed, or an error nobody foresaw; 2 bad input; 130 stopped by Ctrl-C;"
    " 143 stopped by SIGTERM."
)
"""Stands below the help of every command; docs/reference/exit-codes.md says more."""

Quiet = Annotated[bool, flag("--quiet", help="Print nothing but errors and warnings.")]
Verbose = Annotated[
    bool, flag("--verbose", help="Print more: versions, the whole configuration, tracebacks of errors.")
]
Json = Annotated[bool, flag("--json", help="Print the result as one line of JSON on stdout; all else goes to stderr.")]


_UsageError: Any = typer.BadParameter.__base__
"""What Typer raises for options that it refuses; it has no public name that every version of Typer shares."""


@dataclass
class Session:
    """What holds for a whole call of the command line.

    Attributes:
        quiet: nothing is printed but errors and warnings.
        verbose: more is printed.
        json: the result goes to stdout as one line of JSON, everything else to stderr.
        failed: a check of the command failed: it ends with exit code 1.
        terminated: SIGTERM has come.
        last_error: the last text given to `error`.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    failed: bool = False
    terminated: bool = False
    last_error: str | None = None

    def say(self, text: str) -> None:
        """A line for the user, beside the results."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """A line for those who ask for more."""
        if self.verbose:
            self.say(text)

    def error(self, text: str) -> None:
        """A line that is never kept quiet."""
        self.last_error = text
        print(text, file=sys.stderr, flush=True)

    def print(self, text: str) -> None:
        """A line of the results, as it stands: no markup, no wrapping."""
        if not self.quiet:
            print(text)

    def warning(self, text: str) -> None:
        """A line of the results that --quiet does not keep quiet: it then goes to stderr."""
        print(text, file=sys.stderr if self.quiet else sys.stdout)

    def show(self, *tables: "RenderableType") -> None:
        """Tables of the results. Text in them is taken as it stands: names may hold brackets and colons."""
        from rich.console import Console

        if not self.quiet:
            console = Console(markup=False, emoji=False)
            for table in tables:
                console.print(table, highlight=False)

    def take(self, quiet: bool, verbose: bool, json: bool) -> None:
        """Adds the options that stand before a command to those after it."""
        self.quiet, self.verbose, self.json = self.quiet or quiet, self.verbose or verbose, self.json or json

    def stopped(self) -> int:
        """The exit code of a run that was stopped."""
        return TERMINATED if self.terminated else INTERRUPTED

    def refused(self, error: Exception) -> None:
        """Says what was wrong with the input."""
        if self.verbose:
            traceback.print_exception(error)
        self.error(f"error: {error}")

    @contextmanager
    def output(self) -> Iterator[None]:
        """While a command works: what anybody prints goes where this session wants it."""
        with ExitStack() as stack:
            if self.quiet:
                from benchmarks.runs.progress import console

                stack.callback(setattr, console, "quiet", console.quiet)
                console.quiet = True
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            elif self.json:
                stack.enter_context(redirect_stdout(sys.stderr))
            yield

    def finish(self, function: Callable[..., Result], **own: Any) -> None:
        """Runs a command: its output where this session wants it, then the line for --json, then the exit code."""
        try:
            with self.output():
                result = function(self, **own)
        except KeyboardInterrupt:
            self.close_with_error(self.stopped())
            raise typer.Exit(self.stopped()) from None
        self.close(result)
        if self.failed:
            raise typer.Exit(FAILED)

    def close(self, result: Result) -> None:
        """The one line on stdout that --json asks for."""
        if self.json:
            print(as_line(result), flush=True)

    def close_with_error(self, code: int, text: str | None = None) -> None:
        """The same for a call that came to nothing."""
        self.close({"error": (text or self.last_error or "stopped").removeprefix("error: "), "exit_code": code})


def command(function: Callable[..., Result]) -> Callable[..., None]:
    """Makes a function of (session, its own options) one that Typer takes, with the options that all commands share."""

    def call(context: typer.Context, quiet: bool, verbose: bool, json: bool, **own: Any) -> None:
        session = context.ensure_object(Session)
        session.take(quiet, verbose, json)
        session.finish(function, **own)

    return _with_options(call, function)


def group(function: Callable[..., None]) -> Callable[..., None]:
    """The same for a function that is called before the commands of a group; it is given (session, context)."""

    def call(context: typer.Context, quiet: bool, verbose: bool, json: bool, **own: Any) -> None:
        session = context.ensure_object(Session)
        session.take(quiet, verbose, json)
        function(session, context, **own)

    return _with_options(call, function)


def _with_options(call: Callable[..., None], function: Callable[..., object]) -> Callable[..., None]:
    """`call` with the name, the text and the own options of `function`, which Typer reads from its signature."""
    given = inspect.signature(function, eval_str=True).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        *(parameter.replace(kind=keyword) for parameter in given if parameter.name not in ("session", "context")),
        inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
        inspect.Parameter("verbose", keyword, default=False, annotation=Verbose),
        inspect.Parameter("json", keyword, default=False, annotation=Json),
    ]
    call.__name__, call.__doc__ = function.__name__, function.__doc__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def run(app: typer.Typer) -> None:
    """Runs the command line, and leaves by the exit code: see `EXIT_CODES`."""
    session = Session(json="--json" in sys.argv)  # known before the arguments are: they may be what is wrong
    with _sigterm(session):
        try:
            # Typer itself says what is wrong with an option, unless it is to be said in JSON
            sys.exit(app(obj=session, standalone_mode=not session.json) or DONE)
        except _UsageError as error:
            session.error(f"error: {error.format_message()}")
            session.close_with_error(BAD_INPUT)
            sys.exit(BAD_INPUT)
        except KeyboardInterrupt:
            session.close_with_error(session.stopped())
            sys.exit(session.stopped())
        except (ValueError, OSError, FloatingPointError) as error:
            if os.environ.get("PURIFY_DEBUG"):
                raise
            session.refused(error)
            session.close_with_error(BAD_INPUT)
            sys.exit(BAD_INPUT)
        except Exception as error:
            session.close_with_error(FAILED, f"{type(error).__name__}: {error}")
            raise


@contextmanager
def _sigterm(session: Session) -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does: files in the making are removed, and it is said how to go on."""

    def stop(number: int, frame: FrameType | None) -> None:
        session.terminated = True
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, whose business signals are
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
