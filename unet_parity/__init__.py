"""The instrument behind `unet verify`: whether PyTorch and JAX compute the same net."""
