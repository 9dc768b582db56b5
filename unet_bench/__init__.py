"""What `unet bench` runs: the same net in both frameworks, timed in one run on this device."""
