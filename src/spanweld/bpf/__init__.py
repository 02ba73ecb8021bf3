"""The kernel's side: libbpf, maps, the ring buffer, and what passes through them."""
