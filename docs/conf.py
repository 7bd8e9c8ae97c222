"""The pages as HTML: `make docs`. Markdown by MyST; the reference from the installed package."""

from importlib import metadata

project = "relax_inplace"
version = release = metadata.version("relax-inplace")
copyright = "its contributors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["pictures", "_static"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to headings, as GitHub makes them

autodoc_typehints = "none"  # the docstrings say types
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "alabaster"
html_theme_options = {
    "page_width": "76em",
    "body_max_width": "none",
    "sidebar_width": "15em",
    "sidebar_collapse": True,
}
html_static_path = ["_static"]  # custom.css
toc_object_entries_show_parents = "hide"  # in the side bar
html_copy_source = False
