"""A live process: found, its threads, ports, memory and user."""
