"""Reports: runs and sweeps compared on one self-contained HTML page.

``data`` groups runs into methods, ``measures`` computes the statistics, ``svg`` draws, ``charts`` composes the figures,
``page`` assembles the page.
"""
