"""What the compiled code of the GPU kernels says of their speed, with no GPU at hand.

`attnops bench static` drives the public ops on representative inputs (`inputs`), Triton's with a
stand-in driver (`stand_in`, `launches`), so that exactly the variants that real calls launch are
compiled; executes some warps of every launch (`follow`) for the trips of loops and the addresses of
lanes; reads loops, access widths and issue times from the machine code (`sass`, `loops`, `costs`);
and puts an estimate beside the floor (`estimate`, `kernels`, `rows`, `table`). `gate` and `limits`
say what no kernel may fall back to. Estimates are estimates: nothing in here is measured on a
device.
"""
