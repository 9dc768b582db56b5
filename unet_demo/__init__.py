"""What `unet demo` runs: the whole way on synthetic cells."""
