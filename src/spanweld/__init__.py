"""Welds manual OpenTelemetry spans of an unmodified Rust service to automatic ones."""

__version__ = "0.1.0"
