"""mpp: masked-patch pretraining for Vision Transformers."""

__version__ = "0.1.0"
