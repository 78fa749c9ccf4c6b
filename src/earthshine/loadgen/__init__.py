"""A load generator for servers that speak OpenAI's completions: replays a trace of requests and times the answers."""
