"""Where answers run: bubblewrap, a container, or, when asked for by name, nothing around them at all."""
