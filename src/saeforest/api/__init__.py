"""The functions of `import saeforest`: short ways to what the rooms of the library do.

Nothing else in the library imports this room. What is heavy is imported where it is used, so that training on a tensor
needs neither a language model's libraries nor those of measures and reports.
"""
