"""The report on a model graph: one HTML page, and its pictures as files."""

from hf_fip.report.page import MissingExtraError, save_pictures, write_report


__all__ = ["MissingExtraError", "save_pictures", "write_report"]
