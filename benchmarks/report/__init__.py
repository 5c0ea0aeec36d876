"""Result files and what is made of them: records, grids, plots, Markdown."""
