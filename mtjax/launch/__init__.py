"""Commands, absl applications over the library: ``mtjax-train``, ``-evaluate``, ``-sweep``, ``-watch``, ``-report``.

``train``, ``evaluate`` (with ``adapt``, its ``--adapt``), ``sweep``, ``watch`` and ``report`` are a command each, and
``worker`` is what a sweep's launchers start for every program. ``flags`` makes flags of the configuration dataclasses,
``presets`` suits them to a family of suites, ``resolve`` combines what was given, ``folder`` keeps the rules of a run's
folder, ``environment`` sets the process up, ``command`` turns failures into one line and an exit code, ``show`` prints.
"""
