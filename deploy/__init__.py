"""What a federation on Flower needs beside its client and its server: what travels, who is who, a
hospital's own side; and for hospitals over TLS credentials, the gateway, all of it on loopback.
"""
