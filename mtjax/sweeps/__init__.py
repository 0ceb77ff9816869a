"""Sweeps: many trials, planned as few programs, run by a launcher, accounted for in a ledger.

``space`` makes trials of ``--sweep`` axes, ``plan`` packs them into programs, ``ledger`` knows the state of each,
``worker`` runs one program, ``schedule`` runs them all, ``local``, ``slurm`` and ``raycluster`` are the launchers,
``suggest`` asks Optuna for trials and ``status`` reads how far a sweep is.
"""
