"""The commands of ``python -m fastconv``, one module each."""
