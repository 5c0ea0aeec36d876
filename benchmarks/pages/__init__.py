"""The tables of the documentation that follow from what is registered and what was measured."""
