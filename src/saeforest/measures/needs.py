"""Kinds of data that a measure can need. It declares its needs, and `evaluation` supplies these and nothing else."""

from __future__ import annotations

from typing import Literal, get_args

#: Each need, and the data it stands for:
#:
#:     text            the measured text: a `Streaming` measure sees its batches, a `Study` its tokens
#:     losses          losses of the language model with the SAE spliced in, on the first batches (`EvalBatch.losses`)
#:     firings         firings of each feature, and of pairs of features, on the measured activations
#:     activations     all measured activations
#:     probes          directions of the features' concepts, trained on activations and firings
#:     labeled_texts   texts with labels, and their codes; the measure's settings say which (`config.texts`)
#:     first_letters   words read in prompts that ask for their first letter (settings: a `FirstLetterConfig`)
#:     language_model  the language model at the SAE's site, to run it again on some of the measured text
#:     embedding       the vector with which the language model begins for each token, whatever its context
#:     judge           a language model that answers questions; the measure's settings may name it (`config.judge`)
#:     training_log    the log of the SAE's training
#:     forest          the SAE's own forest or, for a flat SAE, an inferred one
Need = Literal[
    "text",
    "losses",
    "firings",
    "activations",
    "probes",
    "labeled_texts",
    "first_letters",
    "language_model",
    "embedding",
    "judge",
    "training_log",
    "forest",
]
NEEDS: tuple[Need, ...] = get_args(Need)
