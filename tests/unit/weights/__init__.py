"""Unit tests of earthshine.weights."""
