"""The trainer: pictures to data set, data set to trained classifier. Imports nothing from jobs or container."""

__version__ = "0.1.0"
