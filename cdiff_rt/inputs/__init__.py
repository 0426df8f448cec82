"""What users give, as arrays: pictures, label maps, sentences, numbers."""
