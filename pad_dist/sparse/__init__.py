"""Tables of item rows, sharded over ranks: the only package that imports torchrec and fbgemm."""
