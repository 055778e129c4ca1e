"""Reads or changes an `nn.Module`; knows no data and no optimizer."""
