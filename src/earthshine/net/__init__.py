"""What every listener needs: a socket, TLS, API keys, allowed hosts and origins, and connection limits.

Handles HTTP/1.1 up to the head of a request, and no API.
"""
