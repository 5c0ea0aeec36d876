"""Parameters and multiply-adds of whole networks, beside the papers' figures."""
