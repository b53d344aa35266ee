"""Row tables over ranks: the only room that imports torchrec and fbgemm."""
