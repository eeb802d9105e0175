"""Variational autoencoders with flows as posterior and prior."""

from flowlab.vae.model import VAE

__all__ = ["VAE"]
