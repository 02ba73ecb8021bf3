"""The inline writer: the SDK's probes run inside the target, entered by jumps instead of traps."""
