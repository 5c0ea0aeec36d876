"""How attnops is built: finds the compilers, writes a ninja file, makes the libraries.

Used by setup.py, by the build backend and by the Makefile; not part of the installed package.
"""
