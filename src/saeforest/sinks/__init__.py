"""Sinks: where a training log goes besides log.jsonl, for tools that draw it while it grows.

    names        the sinks by name, and whether what they need is installed
    sink         what one is: a run of a tool for one SAE, which takes numbers by step
    feed         a thread that feeds a sink, so that training neither waits for it nor fails with it
    tensorboard_files, trackio_run, wandb_run, mlflow_run   one file a tool, imported when it is chosen

`training/sinks.py` knows which remote run belongs to which SAE of a run.
"""
