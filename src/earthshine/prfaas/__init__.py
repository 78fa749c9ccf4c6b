"""Prefill as a service: a prompt is computed where compute is cheap, and its cache is sent to where decoding is cheap.

`fleet` and `profile` describe clusters and links, `throughput` solves the model of the PrfaaS paper (arXiv 2604.15039),
`decide` routes one request and `control` adapts the threshold and the roles of instances; `simulate` runs them over
traces. `wire` carries pieces of a sequence's state between two processes. All of that works without torch. `worker`
prefills for other machines, and `client` is the engine of a server that borrows from workers.
"""
