"""The papers' tables and op microbenchmarks, on one's own machine (`attnops bench`)."""
