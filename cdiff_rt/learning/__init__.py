"""What the influence of experts is to be, found from pairs of clean data and conditions."""
