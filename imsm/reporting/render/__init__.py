"""Render tables and reports to a terminal, Markdown, HTML, CSV and LaTeX."""
