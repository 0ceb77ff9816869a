"""Reports: runs and sweeps on one page, a file that needs no network.

``data`` gathers runs into methods, ``measures`` computes what is compared, ``svg`` draws, ``charts`` says what is
drawn, ``page`` puts it together.
"""
