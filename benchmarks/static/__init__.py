"""What the compiled code of the Triton kernels says of their speed, with no GPU at hand.

`attnops bench static` drives the public ops on representative inputs with a stand-in driver, so
that exactly the variants that real calls launch are compiled (`launches`); counts the trips of
their loops by interpreting a few programs of every launch (`trips`); reads loops, access widths and
issue times from the machine code (`sass`, `loops`, `costs`); and puts an estimate beside the floor
(`estimate`, `table`). Estimates are estimates: nothing in here is measured on a device.
"""
