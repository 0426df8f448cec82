"""Changing a photo to other conditions."""
