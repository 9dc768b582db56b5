"""RUN/ as a folder: how a run begins, its checkpoints, how it goes on."""
