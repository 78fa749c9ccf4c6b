"""What every listener needs, whatever it serves: a socket, TLS, API keys, allowed hosts and origins, connection limits.

Knows HTTP/1.1 up to the head of a request, and no API. The HTTP server and the prefill service listen through it.
"""
