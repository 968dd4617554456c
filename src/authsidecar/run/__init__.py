"""One process: from settings to listeners and back, and a supervisor of several workers."""
