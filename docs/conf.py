"""Sphinx builds these pages: ./start --with docs python -m sphinx docs docs/_build"""

import re

import mtjax

project = "mtjax"
author = "The mtjax authors"
copyright = "The mtjax authors"
release = version = mtjax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.apidoc"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3

# The reference: one page a package, made from the docstrings.
apidoc_modules = [
    {
        "path": "../mtjax",
        "destination": "api",
        "separate_modules": False,
        "module_first": True,
        "implicit_namespaces": False,
    }
]
autodoc_member_order = "bysource"
autodoc_default_options = {"ignore-module-all": True}  # what a package offers is documented where it is defined
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_mock_imports = ["envpool"]
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "py:obj"

suppress_warnings = ["ref.python"]  # a type is named as the code names it, and two modules may have one

html_theme = "furo"
html_title = "mtjax"


# Docstrings are written to be read as they are: |x| is a length and a * b a product, never markup.
_MARKUP = re.compile(r"(^\s*\* |``.*?``|`.*?`)|([|*])")


def _plain(app, what, name, obj, options, lines):
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[number] = _MARKUP.sub(lambda found: found[1] or "\\" + found[2], line)


def setup(app):
    app.connect("autodoc-process-docstring", _plain, priority=100)  # before napoleon
