"""mela_jax: dermoscopy images to a phone-sized melanoma classifier, stated honestly."""

__version__ = "0.1.0"
