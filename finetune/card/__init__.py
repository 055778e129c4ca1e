"""The model card: a README that says what a checkpoint is and how to use it; and the upload of both."""
