"""Many images from one file."""
