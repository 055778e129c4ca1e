"""Preprocessing: from pictures, texts and sound to model inputs."""
