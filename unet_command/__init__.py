"""`unet_command` is what stands behind the verbs of `unet_cli`.

`parsing` makes a verb of the words that were typed, `usage` a sentence of words that make none,
`wording` a sentence of an error, `training` runs the process of `unet train`, `planning` does what
`unet plan` does, `predicting` does what `unet predict` does, in a folder of `prediction_folder`,
`verifying`, `pairs` and `recordings` do what `unet verify` does, and `reports` writes what `--json`
and `--report` name. Nothing here imports a framework before a verb needs it.
"""
