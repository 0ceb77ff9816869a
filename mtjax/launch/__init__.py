"""Commands: ``mtjax-train`` and ``mtjax-evaluate``, absl applications over the library.

``flags`` makes flags of the configuration dataclasses, ``presets`` suits them to a family of suites,
``resolve`` combines what was given, ``folder`` keeps the rules of a run's folder, ``environment`` sets the
process up, ``command`` turns failures into one line and an exit code, ``show`` prints.
"""
