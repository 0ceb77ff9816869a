"""Sweeps: many trials, planned as few programs, run by a launcher, accounted for in a ledger.

``space`` makes trials of ``--sweep`` axes, ``plan`` packs them into programs, ``ledger`` knows the state of each,
``worker`` runs one program, ``schedule`` runs them all, ``local``, ``slurm`` and ``cluster`` are the launchers.
"""
