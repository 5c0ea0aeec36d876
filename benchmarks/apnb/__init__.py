"""Table 1 and figure 2 of the ANN paper: the asymmetric block against its peers."""
