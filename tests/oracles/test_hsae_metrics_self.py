"""The oracle of HSAE: its metrics by hand."""

import numpy as np

from .hsae_levels import conditional, hamming

# ---- metrics ----------------------------------------------------------------------------------------------


def test_vector_12():
    # A, B; a1, a2 children of A
    parent = [-1, -1, 0, 0]
    first = np.array([[1, 1, 1, 0]], dtype=np.bool_)
    second = np.array([[0, 0, 0, 1]], dtype=np.bool_)
    assert hamming(first, parent, [2, 2]) == [1.0]
    assert hamming(first, parent, [2, 2], all_parents=False) == [0.0]
    assert hamming(second, parent, [2, 2]) == [1.0]
    assert hamming(second, parent, [2, 2], all_parents=False) == [1.0]
    both = np.concatenate([first, second])
    assert hamming(both, parent, [2, 2]) == [1.0]
    assert hamming(both, parent, [2, 2], all_parents=False) == [0.5]


def test_hamming_by_level():
    parent = [-1, 0, -1, 1]
    active = np.array([[1, 0, 1, 1], [1, 1, 0, 1]], dtype=np.bool_)
    # level 0: token 1 wrong; level 1 (features 1, 2): token 1: feature 1 predicted but off, feature 2 on
    assert hamming(active, parent, [1, 2, 1]) == [0.5, 1.0]
    assert hamming(active, parent, [1, 2, 1], all_parents=False) == [0.5, 0.5]


def test_vector_13():
    # child active on tokens 0-3, parent on 1-6, together on 1-3
    active = np.zeros((8, 2), dtype=np.bool_)
    active[1:7, 0] = True
    active[0:4, 1] = True
    assert conditional(active, [-1, 0], [1, 1]) == ([(0, 1, 0.75)], [(0, 1, 0.5)])


def test_conditional_leaves_out_the_undefined():
    active = np.array([[1, 0, 0, 1, 1], [1, 0, 0, 1, 0]], dtype=np.bool_)
    parent = [-1, -1, 0, 1, -1]  # 2 never fires, nor does the parent 1 of 3; 4 has no parent
    assert conditional(active, parent, [2, 3]) == ([(1, 3, 0.0)], [(0, 2, 0.0)])
