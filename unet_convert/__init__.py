"""`unet_convert` is what stands behind `unet convert`.

`conversion` reads one kind of file and writes another. `foreign` recognises nets of other people:
`names_map` reads a map of their names, and `evidence` settles what no tensor shows.
"""
