"""`make demo`: attention on a photograph, the table and figure 2."""
