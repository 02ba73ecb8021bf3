"""The command line; the one place where an error becomes an exit code."""

from __future__ import annotations

import sys

import click

from spanweld import __version__
from spanweld.commands.attach import attach
from spanweld.commands.doctor import doctor
from spanweld.commands.inspect import inspect
from spanweld.commands.run import run
from spanweld.errors import SpanweldError
from spanweld.messages import say_error

EPILOG = """\b
Exit codes: `run` ends with the service's own. Else 0: done, 2: a wrong call, 3: the host
does not allow it, 4: the executable cannot be traced, 5: the process cannot.
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spanweld")
def cli() -> None:
    """Traces an unmodified Rust service and joins the spans that it makes by hand.

    HTTP requests become OpenTelemetry spans by eBPF. Root spans that the service makes with the
    OpenTelemetry SDK become their children, in the running process, so that the service's own
    exporter sends them so.
    """


for command in (run, attach, inspect, doctor):
    cli.add_command(command)


def main() -> None:
    """Entry point of the ``spanweld`` command."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except SpanweldError as error:
        say_error(error)
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does.
        code = 141
    sys.exit(code if isinstance(code, int) else 0)
