"""What a run leaves: images with their parameters inside, and on request more beside them."""
