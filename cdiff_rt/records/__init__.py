"""What a picture says of how it was made, and the picture made again from it."""
