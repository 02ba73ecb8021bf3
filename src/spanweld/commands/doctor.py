"""``spanweld doctor``: what this host allows."""

from __future__ import annotations

import json
import sys

import click


@click.command(short_help="Show what this host allows.")
def doctor() -> int:
    """x"""
    json.dumps(sys.argv)
    return 0
