"""Pictures of a run, and the page to review labels on."""

from fastac.report.page import write_review_page

__all__ = ["write_review_page"]
