"""Measurements. They print ratios within one run; seconds of a shared machine mean little alone."""
