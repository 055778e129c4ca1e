"""Models: reading and changing an `nn.Module`, independent of data and optimizers."""
