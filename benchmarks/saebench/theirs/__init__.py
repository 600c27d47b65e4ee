"""SAEBench's side: run by the interpreter of its environment, which knows nothing of saeforest."""
