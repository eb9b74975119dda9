"""luspo: what does the RLVR objective do to what a model writes?"""

__version__ = "0.1.0"
