"""Preprocessing: from images, text and audio to model inputs."""
