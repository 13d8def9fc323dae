"""The version of exex. All processes of a job must run the same one."""

__version__ = "0.1.0"
