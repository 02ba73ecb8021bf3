"""Settings from the environment, by the OpenTelemetry specification."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from spanweld.errors import UsageError
from spanweld.settings import (
    BatchSettings,
    OtlpProtocol,
    OtlpSettings,
    Propagator,
    SamplerSettings,
    Settings,
    batch_from_environment,
    otlp_endpoint_is_set,
    otlp_from_environment,
    parse_baggage_attributes,
    parse_key_values,
    propagators_from_environment,
    sampler_from_environment,
)

OTLP = "OTEL_EXPORTER_OTLP_"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_"


def test_an_empty_environment_gives_the_defaults() -> None:
    assert otlp_from_environment({}) == OtlpSettings()
    assert batch_from_environment({}) == BatchSettings()
    assert sampler_from_environment({}) == SamplerSettings()
    assert not otlp_endpoint_is_set({})


def test_empty_values_are_no_values() -> None:
    names = [prefix + name for prefix in (OTLP, TRACES) for name in ("ENDPOINT", "PROTOCOL", "HEADERS")]
    names += [OTLP + "TIMEOUT", "OTEL_BSP_SCHEDULE_DELAY", "OTEL_TRACES_SAMPLER"]
    environ = dict.fromkeys(names, "")
    assert otlp_from_environment(environ) == OtlpSettings()
    assert batch_from_environment(environ) == BatchSettings()
    assert sampler_from_environment(environ) == SamplerSettings()
    assert not otlp_endpoint_is_set(environ)


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, "http://localhost:4318/v1/traces"),
        ({OTLP + "ENDPOINT": "http://a:1"}, "http://a:1/v1/traces"),
        ({OTLP + "ENDPOINT": "http://a:1/"}, "http://a:1/v1/traces"),
        ({OTLP + "ENDPOINT": "https://a/base/"}, "https://a/base/v1/traces"),
        ({TRACES + "ENDPOINT": "http://a:1"}, "http://a:1"),
        ({TRACES + "ENDPOINT": "http://a:1/spans"}, "http://a:1/spans"),
        ({TRACES + "ENDPOINT": "http://a:1/x", OTLP + "ENDPOINT": "http://b:2"}, "http://a:1/x"),
        ({OTLP + "PROTOCOL": "grpc"}, "http://localhost:4317"),
        ({OTLP + "PROTOCOL": "grpc", OTLP + "ENDPOINT": "http://a:1"}, "http://a:1"),
        ({OTLP + "PROTOCOL": "grpc", OTLP + "ENDPOINT": "a:1"}, "a:1"),
        ({OTLP + "PROTOCOL": "grpc", OTLP + "ENDPOINT": "unix:///run/a.sock"}, "unix:///run/a.sock"),
        ({OTLP + "PROTOCOL": "grpc", OTLP + "ENDPOINT": "dns:///a:1"}, "dns:///a:1"),
        ({OTLP + "ENDPOINT": "http://[::1]:4318"}, "http://[::1]:4318/v1/traces"),
    ],
)
def test_endpoints(environ: dict[str, str], endpoint: str) -> None:
    assert otlp_from_environment(environ).endpoint == endpoint


@pytest.mark.parametrize(
    "text", ["collector:4318", "ftp://a", "http://", "http://a:port", "http://a:0", "/x"]
)
@pytest.mark.parametrize("name", [OTLP + "ENDPOINT", TRACES + "ENDPOINT"])
def test_endpoints_that_are_no_url_name_their_variable(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"^{name}: ") as caught:
        otlp_from_environment({name: text})
    assert text in caught.value.message
    assert "http://HOST:PORT" in caught.value.remedy


@pytest.mark.parametrize(
    ("protocol", "endpoint", "variable", "insecure"),
    [
        ("http/protobuf", "http://a:1", "", True),
        ("http/protobuf", "https://a:1", "true", False),
        ("grpc", "http://a:1", "false", True),
        ("grpc", "https://a:1", "true", False),
        ("grpc", "HTTPS://a:1", "true", False),
        ("grpc", "a:1", "", False),
        ("grpc", "a:1", "TRUE", True),
        ("grpc", "a:1", "1", False),
        ("grpc", "a:1", "false", False),
        ("grpc", "unix:///run/a.sock", "true", True),
    ],
)
def test_the_scheme_decides_on_tls_and_the_variable_where_there_is_none(
    protocol: str, endpoint: str, variable: str, insecure: bool
) -> None:
    environ = {OTLP + "PROTOCOL": protocol, OTLP + "ENDPOINT": endpoint, OTLP + "INSECURE": variable}
    assert otlp_from_environment(environ).insecure is insecure


def test_the_variable_for_traces_comes_first() -> None:
    environ = {
        OTLP + "PROTOCOL": "grpc",
        TRACES + "PROTOCOL": "HTTP/protobuf",
        OTLP + "HEADERS": "a=1",
        TRACES + "HEADERS": "b=2",
        OTLP + "TIMEOUT": "1000",
        TRACES + "TIMEOUT": "2500",
        OTLP + "COMPRESSION": "none",
        TRACES + "COMPRESSION": "gzip",
        OTLP + "CERTIFICATE": "/a",
        TRACES + "CERTIFICATE": "/b",
        TRACES + "CLIENT_KEY": "/key",
        TRACES + "CLIENT_CERTIFICATE": "/cert",
    }
    assert otlp_from_environment(environ) == OtlpSettings(
        protocol=OtlpProtocol.HTTP_PROTOBUF,
        headers={"b": "2"},
        timeout=2.5,
        gzip=True,
        certificate=Path("/b"),
        client_key=Path("/key"),
        client_certificate=Path("/cert"),
    )


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        (" , ,", {}),
        ("a=b", {"a": "b"}),
        (" a = b , c = d ", {"a": "b", "c": "d"}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("authorization=Basic%20abc%3D%2C", {"authorization": "Basic abc=,"}),
        ("a%2Cb=c", {"a,b": "c"}),
        ("a=gr%C3%BC%C3%9Fe", {"a": "grüße"}),
        ("a=1+2", {"a": "1+2"}),
        ("a=1,a=2", {"a": "2"}),
    ],
)
def test_key_values(text: str, pairs: dict[str, str]) -> None:
    assert parse_key_values(text, "VARIABLE") == pairs


@pytest.mark.parametrize("text", ["secret", "=secret", "a=b,secret", "a=secret%FF"])
def test_key_values_with_one_wrong_item_are_discarded_without_showing_it(text: str) -> None:
    with pytest.raises(UsageError, match="VARIABLE: item") as caught:
        parse_key_values(text, "VARIABLE")
    assert "secret" not in str(caught.value)
    problems: list[str] = []
    assert parse_key_values(text, "VARIABLE", lambda message, remedy: problems.append(message + remedy)) == {}
    assert len(problems) == 1


def test_times_are_milliseconds_and_no_limit_is_0() -> None:
    environ = {
        "OTEL_BSP_SCHEDULE_DELAY": "0",
        "OTEL_BSP_EXPORT_TIMEOUT": "0",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "50",
    }
    assert batch_from_environment(environ) == BatchSettings(0.0, math.inf, 100, 50)
    assert otlp_from_environment({OTLP + "TIMEOUT": "0"}).timeout == math.inf
    assert otlp_from_environment({OTLP + "TIMEOUT": " 250 "}).timeout == 0.25


def test_a_batch_is_never_larger_than_the_queue() -> None:
    assert batch_from_environment({"OTEL_BSP_MAX_QUEUE_SIZE": "10"}).max_export_batch_size == 10
    environ = {"OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "20"}
    assert batch_from_environment(environ).max_export_batch_size == 10


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1.5"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "10s"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "²"),
        (OTLP + "TIMEOUT", "-1"),
        (OTLP + "PROTOCOL", "http/json"),
        (OTLP + "COMPRESSION", "zstd"),
        (OTLP + "ENDPOINT", "nowhere"),
        (OTLP + "HEADERS", "nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused_or_said_and_ignored(name: str, text: str) -> None:
    environ = {name: text}
    with pytest.raises(UsageError, match=f"^{name}: "):
        (batch_from_environment(environ), otlp_from_environment(environ))
    problems: list[str] = []

    def say(message: str, _remedy: str) -> None:
        problems.append(message)

    assert batch_from_environment(environ, say) == BatchSettings()
    assert otlp_from_environment(environ, say) == OtlpSettings()
    assert [problem.partition(":")[0] for problem in problems] == [name]


def test_an_endpoint_may_come_from_either_variable() -> None:
    assert otlp_endpoint_is_set({OTLP + "ENDPOINT": "http://a"})
    assert otlp_endpoint_is_set({TRACES + "ENDPOINT": "http://a"})


@pytest.mark.parametrize(
    ("name", "argument", "settings"),
    [
        ("always_on", "", SamplerSettings(1.0, parent_based=False)),
        ("always_off", "", SamplerSettings(0.0, parent_based=False)),
        ("parentbased_always_off", "0.5", SamplerSettings(0.0, parent_based=True)),
        ("traceidratio", "0.25", SamplerSettings(0.25, parent_based=False)),
        ("parentbased_traceidratio", "", SamplerSettings(1.0, parent_based=True)),
    ],
)
def test_samplers(name: str, argument: str, settings: SamplerSettings) -> None:
    environ = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    assert sampler_from_environment(environ) == settings


@pytest.mark.parametrize(
    ("name", "argument"), [("jaeger_remote", ""), ("traceidratio", "2"), ("traceidratio", "half")]
)
def test_samplers_that_are_not_known(name: str, argument: str) -> None:
    with pytest.raises(UsageError, match="OTEL_TRACES_SAMPLER"):
        sampler_from_environment({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument})


@pytest.mark.parametrize(
    ("text", "propagators"),
    [
        ("", Settings().propagators),
        (" , ", Settings().propagators),
        ("tracecontext,baggage", (Propagator.TRACECONTEXT, Propagator.BAGGAGE)),
        (" baggage , b3multi", (Propagator.BAGGAGE, Propagator.B3_MULTI)),
        ("jaeger,b3,jaeger,b3multi", (Propagator.JAEGER, Propagator.B3, Propagator.B3_MULTI)),
        ("none", ()),
    ],
)
def test_propagators(text: str, propagators: tuple[Propagator, ...]) -> None:
    assert propagators_from_environment({"OTEL_PROPAGATORS": text}) == propagators
    assert propagators_from_environment({}) == (Propagator.TRACECONTEXT, Propagator.BAGGAGE)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("xray", "'xray' is not known", "tracecontext, baggage, b3, b3multi, jaeger, or none"),
        ("b3,TraceContext", "'TraceContext' is not known", "tracecontext"),
        ("none,b3", "'none' is not alone", "leave it out"),
    ],
)
def test_propagators_that_are_not_known(text: str, message: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        propagators_from_environment({"OTEL_PROPAGATORS": text})
    assert caught.value.message == f"OTEL_PROPAGATORS: {message}"
    assert remedy in caught.value.remedy


def test_baggage_attributes() -> None:
    assert parse_baggage_attributes("") == frozenset()
    assert parse_baggage_attributes("*") == {"*"}
    assert parse_baggage_attributes("tenant, user.id ,") == {"tenant", "user.id"}
    with pytest.raises(UsageError, match="--baggage-attributes"):
        parse_baggage_attributes("tenant,*")
