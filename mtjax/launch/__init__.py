"""The commands, as absl applications: ``mtjax-train``, ``-evaluate``, ``-sweep``, ``-watch``, ``-report``.

``train``, ``evaluate`` (with ``adapt`` for its ``--adapt``), ``sweep``, ``watch`` and ``report`` hold one command each;
a sweep's launchers run ``worker`` for every program. ``flags`` generates flags from the configuration dataclasses,
``presets`` holds settings for families of suites, ``resolve`` combines presets, saved runs and flags, ``folder``
enforces the rules of run folders, ``environment`` sets up the process, ``command`` turns failures into one line and an
exit code, and ``show`` formats what is printed.
"""
