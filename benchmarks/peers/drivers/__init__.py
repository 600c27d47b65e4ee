"""One file a library: what a user of it would run, and nothing more.

Every file has `prepare(case)`, which returns a function that does one step (or one encode) on a batch.
Each runs in the environment of its library, so it may import that library, torch and `..case`.
"""
