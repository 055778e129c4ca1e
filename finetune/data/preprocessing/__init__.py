"""Preprocessing: from images, texts and sound to model inputs."""
