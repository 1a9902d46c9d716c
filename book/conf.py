"""Sphinx reads this. `tools/build_book.py` lays out the pages and the vendored scripts, then starts Sphinx on them."""

import os

project = "lorahub-edu"
author = "The lorahub-edu contributors"
copyright = "2026, the lorahub-edu contributors. Texts: CC BY 4.0"
extensions = ["myst_nb"]
exclude_patterns = ["vendor"]
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]  # a widget's view stands beside its picture and text

# Nothing is loaded from another host.
html_static_path = ["vendor", "static"]
mathjax_path = "mathjax/tex-mml-chtml.js"
mathjax4_config = {
    "loader": {"paths": {"mathjax-newcm": "[mathjax]/../mathjax-newcm-font"}},
    "output": {"fontPath": "[mathjax]/../%%FONT%%-font"},
    "options": {"menuOptions": {"settings": {"enrich": False, "speech": False, "braille": False}}},
}
nb_ipywidgets_js = {"require.js": {}, "widgets.js": {}, "widgets/embed-amd.js": {}}

html_theme = "sphinx_book_theme"
html_favicon = "static/favicon.svg"
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_context = {"default_mode": "auto"}
html_title = "lorahub-edu"
html_show_sourcelink = False
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],
    "navigation_with_keys": True,
}
# The address of the repository, where it is known, adds buttons to open a lesson on Binder or Colab.
if repository := os.environ.get("BOOK_REPOSITORY"):
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }
