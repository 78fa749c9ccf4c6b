"""Earthshine runs open sparse mixture-of-experts models with latent attention on hardware people have."""

__version__ = "0.1.0"
