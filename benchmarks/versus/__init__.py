"""Peers side by side: what every script `benchmarks/versus_*.py` shares.

A comparison is two sides (`alternation.Side`: a Python and a worker script of its own) and a list of measurements. Each
run is a fresh process of one side; runs alternate A B B A; the ratio is taken of neighbours. The modules here start
processes and count; they load neither torch nor a peer, so their own work is in no figure.
"""
