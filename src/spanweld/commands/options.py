"""Options that `run` and `attach` share, and the settings that they make."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import click

from spanweld.agent import Target
from spanweld.layouts import SdkLayout
from spanweld.messages import warn
from spanweld.plan import NO_OTHER_GENERATORS
from spanweld.settings import (
    AdoptMode,
    InjectMode,
    Priority,
    ProbesMode,
    Settings,
    WriteMode,
    batch_from_environment,
    otlp_endpoint_is_set,
    otlp_from_environment,
    parse_baggage_attributes,
    parse_key_values,
    propagators_from_environment,
    sampler_from_environment,
)

Function = TypeVar("Function", bound=Callable[..., Any])


def _choice(name: str, default: Enum, description: str) -> Callable[[Function], Function]:
    """``--name``, or SPANWELD_NAME: one of the values of the default's type."""
    return click.option(
        f"--{name}",
        type=click.Choice([value.value for value in type(default)]),
        default=default.value,
        envvar=f"SPANWELD_{name.upper()}",
        show_default=True,
        help=description,
    )


def tracing_options(command: Callable[..., int]) -> Callable[..., int]:
    """Adds what says how a target is traced; the command gets all of it as ``settings``.

    Flags over environment over defaults; UsageError for what cannot be meant.
    """

    @functools.wraps(command)
    def function(
        *,
        exports: tuple[str, ...],
        write: str,
        probes: str,
        adopt: str,
        inject: str,
        priority: str,
        exclude_paths: tuple[str, ...],
        baggage_attributes: str,
        **others: object,
    ) -> int:
        environ = os.environ
        default = ("otlp",) if otlp_endpoint_is_set(environ) else ("console",)
        settings = Settings(
            exports=exports or default,
            write=WriteMode(write),
            probes=ProbesMode(probes),
            adopt=AdoptMode(adopt),
            inject=InjectMode(inject),
            priority=Priority(priority),
            exclude_paths=exclude_paths,
            service_name=environ.get("OTEL_SERVICE_NAME") or None,
            resource_attributes=parse_key_values(
                environ.get("OTEL_RESOURCE_ATTRIBUTES", ""), "OTEL_RESOURCE_ATTRIBUTES", warn
            ),
            sampler=sampler_from_environment(environ),
            propagators=propagators_from_environment(environ),
            baggage_attributes=parse_baggage_attributes(baggage_attributes),
            batch=batch_from_environment(environ, warn),
            otlp=otlp_from_environment(environ, warn),
        )
        return command(settings=settings, **others)

    options = (
        click.option(
            "--export",
            "exports",
            multiple=True,
            envvar="SPANWELD_EXPORT",
            metavar="console|otlp|json:FILE",
            help="Where automatic spans go; repeatable. The console tree also shows the service's own spans. "
            "Default: otlp if OTEL_EXPORTER_OTLP_ENDPOINT is set, else console.",
        ),
        _choice(
            "write",
            WriteMode.AUTO,
            "How adoptions reach the service's memory; `spanweld doctor` shows what this host allows. "
            "off: nothing is written, automatic spans link to manual ones.",
        ),
        _choice(
            "probes",
            ProbesMode.AUTO,
            "How the SDK's functions are probed: by the kernel (uprobe), or by code put into the "
            "service (inline), which costs nanoseconds, where it allows that. auto is what --write needs.",
        ),
        _choice(
            "adopt",
            AdoptMode.ACTIVE,
            "Parent of a manual root: the innermost active span, or always the server span.",
        ),
        _choice(
            "inject",
            InjectMode.AUTO,
            "Whether requests that the service sends get a traceparent header, unless it wrote one. "
            "auto: where a trial at start shows that this kernel does not harm transfers.",
        ),
        _choice(
            "priority",
            Priority.IDLE,
            "When the agent decodes and exports: while nobody else wants the processor (idle, but for a "
            "moment where somebody always does), or like any other process. Spans that are lost so are "
            "counted.",
        ),
        click.option(
            "--exclude-path",
            "exclude_paths",
            multiple=True,
            envvar="SPANWELD_EXCLUDE_PATH",
            metavar="PATH",
            help="Leave requests to this path alone, /healthz or /internal/*; repeatable.",
        ),
        click.option(
            "--baggage-attributes",
            default="",
            envvar="SPANWELD_BAGGAGE_ATTRIBUTES",
            metavar="KEY,...|*",
            help="Members of a request's baggage that become attributes of automatic spans: these, or all. "
            "Who calls the service chooses what they say.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def describe(target: Target) -> str:
    """The ready line: what is traced, and how manual spans are treated."""
    plan, mode = target.plan, target.writer.mode
    name = target.resource.attributes["process.executable.name"]
    if plan.why_no_adoption:
        manual = f"manual spans are left alone: {plan.why_no_adoption}"
    elif mode is WriteMode.OFF:
        manual = "manual spans are linked, not adopted (write off)"
    else:
        sdk = f"opentelemetry_sdk {plan.sdk_versions[0]}"
        how = f"write {mode.value}"
        if target.why_not_inline:
            how += f", not inline: {target.why_not_inline}"
        if isinstance(plan.layout, SdkLayout):
            source = f"layout from the {plan.layout.source}"
            manual = f"manual spans of {sdk} are adopted ({how}), {source}"
        else:
            manual = f"manual spans of {sdk} are adopted once their layout is learned ({how})"
        if not plan.knows_generators:
            manual += f"; {NO_OTHER_GENERATORS}"
    return f"ready (pid {target.pid}, {name}; {manual})"
