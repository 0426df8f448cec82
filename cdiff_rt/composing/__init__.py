"""Score models of any make as the experts of one pipeline, and that as a bundle."""
