"""A federation over TLS: credentials, the gateway in front of the server, and one on loopback."""
