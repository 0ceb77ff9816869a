"""Sweeps: many trials, planned as few programs, run by a launcher and recorded in a ledger.

``space`` expands ``--sweep`` axes into trials, ``plan`` packs trials into programs, ``ledger`` records their states,
``worker`` runs one program, ``schedule`` runs all programs, ``local``, ``slurm`` and ``raycluster`` are the launchers,
``suggest`` asks Optuna for trials and ``status`` reports the progress of a sweep.
"""
