"""Triton kernels and their launchers, one file per op; shipped as `cacovid.kernels`.

Importing this package compiles nothing. `cacovid.ops` imports a launcher where Triton and a device
for it are at hand.
"""
