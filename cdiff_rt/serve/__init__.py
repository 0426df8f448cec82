"""The server: requests by HTTP in the shapes that other people's clients speak already, made one after the other."""
