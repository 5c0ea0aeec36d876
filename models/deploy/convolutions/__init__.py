"""Convolutions of a compiled network: which of them the C++ library computes, and how.

`packing` is the pass over a graph and chooses; `chains` is what a convolution may take along; the
others are one op of the library each.
"""
