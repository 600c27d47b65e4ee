"""The other tools' side: each file is run by the interpreter of a tool's environment."""
