"""`unet demo`: the whole way on synthetic cells. It runs from a checkout."""
