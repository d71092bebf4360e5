"""A static site from what `amr analyze` leaves: for people to look at a model, from disk or from any web server.

`pack` is how numbers get into a page, `source` reads an analysis, `write` writes the site, `static` is its program.
Nothing here imports torch.
"""

from amr.report.site.write import write_site

__all__ = ["write_site"]
